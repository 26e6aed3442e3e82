"""Does hire-mlp swap write configs that train, and tell all that it changed?"""

from __future__ import annotations

import re

import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from sweep import table, train_a_step

from hire_mlp_mm.arch import ARCHS
from hire_mlp_mm.configure import SwapError, make_swap, swap_backbone
from hire_mlp_mm.engine.config import find_config
from tests.conftest import ROOT

# One config for each way in which a model reads its backbone; dev/sweep.py tries all families.
WORK = {
    "a neck that skips the finest map": "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py",
    "RoI heads": "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    "channels in reverse": "mmdet::yolo/yolov3_d53_8xb8-320-273e_coco.py",
    "a neck that hands on what it reads": "mmdet::ssd/ssd300_coco.py",
    "one map": "mmdet::detr/detr_r50_8xb2-150e_coco.py",
    "deformable convolutions": "mmdet::tood/tood_r50_fpn_1x_coco.py",
    "a detector in a tracker": "mmdet::bytetrack/"
    "bytetrack_yolox_x_8xb4-80e_crowdhuman-mot17halftrain_test-mot17halfval.py",
    "two heads": "mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py",
    "the first map by a name of its own": "mmseg::deeplabv3plus/"
    "deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py",
    "two maps of four": "mmseg::ann/ann_r50-d8_4xb4-80k_ade20k-512x512.py",
    "a neck that heads read through": "mmseg::fastfcn/"
    "fastfcn_r50-d32_jpu_aspp_4xb4-80k_ade20k-512x512.py",
    "maps of one stride": "mmseg::vit/vit_deit-s16_mln_upernet_8xb2-160k_ade20k-512x512.py",
    "a decoder in the backbone": "mmseg::unet/unet-s5-d16_fcn_4xb4-40k_drive-64x64.py",
    "a pooled map": "mmpretrain::resnet/resnet50_8xb32_in1k.py",
    "a class token": "mmpretrain::deit/deit-tiny_4xb256_in1k.py",
    "maps of four strides": "mmpretrain::hrnet/hrnet-w18_4xb32_in1k.py",
}
REFUSED = {
    "mmdet::faster_rcnn/faster-rcnn_r50-caffe-c4_ms-1x_coco.py": "shared_head",
    "mmdet::detectors/cascade-rcnn_r50-rfp_1x_coco.py": "neck RFP runs the old backbone again",
    "mmdet::cornernet/cornernet_hourglass104_32xb3-210e-mstest_coco.py": "gives strides",
    "mmseg::dpt/dpt_vit-b16_8xb2-160k_ade20k-512x512.py": "tokens",
    "mmseg::san/san-vit-b16_coco-stuff164k-640x640.py": "has no `backbone` to replace",
}


def load(name: str) -> Config:
    return Config.fromfile(find_config(name))


@pytest.mark.parametrize("name", WORK.values(), ids=WORK)
def test_a_swapped_config_trains(name):
    train_a_step(swap_backbone(load(name), "tiny", "none"))


LAZY = """
from mmengine.model import PretrainedInit
from mmengine.optim import OptimWrapper
from mmpretrain.models import GlobalAveragePooling, ImageClassifier, LinearClsHead, ResNet
from mmpretrain.models.losses import CrossEntropyLoss
from torch.optim import SGD

default_scope = {scope!r}
model = dict(
    type=ImageClassifier,
    backbone=dict(
        type=ResNet, depth=18, init_cfg=dict(type=PretrainedInit, checkpoint="torchvision://x")
    ),
    neck=dict(type=GlobalAveragePooling),
    head=dict(
        type=LinearClsHead, num_classes=5, in_channels=512, loss=dict(type=CrossEntropyLoss)
    ),
)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.1))
"""


@pytest.mark.parametrize("scope", ["mmpretrain", None])
def test_a_config_that_imports_its_classes(scope, tmp_path):
    (tmp_path / "lazy.py").write_text(LAZY.format(scope=scope))
    swap = make_swap(load(str(tmp_path / "lazy.py")), "base")
    (tmp_path / "swapped.py").write_text(swap.text("lazy.py"))
    cfg = load(str(tmp_path / "swapped.py"))
    assert cfg.default_scope == "mmpretrain"
    assert cfg.model.backbone.type == "HireMLP"
    kinds = [cfg.model.type, cfg.model.head.type, cfg.optim_wrapper.optimizer.type]
    assert kinds == ["ImageClassifier", "LinearClsHead", "SGD"]
    assert any("on ImageNet" in line for line in swap.advice())
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        cfg.model.backbone.init_cfg = None
        MODELS.build(cfg.model)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_swapped_is_refused_with_the_reason(name):
    with pytest.raises(SwapError, match=REFUSED[name]) as error:
        swap_backbone(load(name), "tiny", "none")
    assert "\n" not in str(error.value)


def leaves(node, path=""):
    """Every value of a config by its path."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, (list, tuple)) and any(isinstance(x, dict) for x in node):
        for i, value in enumerate(node):
            yield from leaves(value, f"{path}.{i}")
    else:
        yield path, str(list(node) if isinstance(node, tuple) else node)


@pytest.mark.parametrize(
    "name",
    [
        "mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py",
        "mmdet::yolox/yolox_s_8xb8-300e_coco.py",
        "mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py",
        "mmseg::unet/unet-s5-d16_fcn_4xb4-40k_drive-64x64.py",
        "mmpretrain::deit/deit-tiny_4xb256_in1k.py",
    ],
)
def test_every_difference_is_told(name):
    cfg = load(name)
    text = cfg.pretty_text
    before = dict(leaves(cfg.to_dict()))
    swap = make_swap(cfg, "small")
    assert cfg.pretty_text == text  # left alone
    told = [line.partition(":")[0] for line in swap.changes]
    after = dict(leaves(swap.cfg.to_dict()))
    for path in before.keys() | after.keys():
        if before.get(path) != after.get(path):
            assert any(path == t or path.startswith(f"{t}.") for t in told), path


@pytest.mark.parametrize("arch", ARCHS)
def test_channels_and_weights_follow_the_arch(arch):
    cfg = load("mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py")
    given = "my.pth" if arch == "large" else None
    cfg = swap_backbone(cfg, arch, given)
    dims = ARCHS[arch].dims
    assert list(cfg.model.decode_head.in_channels) == list(dims)
    assert cfg.model.auxiliary_head.in_channels == dims[2]
    assert cfg.model.backbone.init_cfg.checkpoint == (given or f"hire-mlp://{arch}")
    assert cfg.model.pretrained is None


def test_normalisation_is_that_of_the_weights():
    cfg = load("mmdet::atss/atss_r50_fpn_1x_coco.py")
    cfg.model.data_preprocessor.update(mean=[103.53, 116.28, 123.675], std=[1.0] * 3)
    cfg.model.data_preprocessor.bgr_to_rgb = False
    cfg = swap_backbone(cfg, "tiny")
    assert cfg.model.data_preprocessor.mean == [123.675, 116.28, 103.53]
    assert cfg.model.data_preprocessor.std == [58.395, 57.12, 57.375]
    assert cfg.model.data_preprocessor.bgr_to_rgb is True


@pytest.mark.parametrize(
    "options",
    [
        dict(decay_rate=0.8, decay_type="stage_wise", num_layers=6),  # ConvNeXt's
        dict(layer_decay_rate=0.8, num_layers=12),  # BEiT's
    ],
)
def test_layer_decay_of_a_host_becomes_ours(options):
    cfg = load("mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py")
    cfg.optim_wrapper.update(constructor="LayerDecayOptimizerConstructor", paramwise_cfg=options)
    cfg = swap_backbone(cfg, "tiny", "none")
    with DefaultScope.overwrite_default_scope("mmseg"):
        wrapper = build_optim_wrapper(MODELS.build(cfg.model), cfg.optim_wrapper)
    rates = sorted({group["lr"] for group in wrapper.optimizer.param_groups})
    # A layer for the stem, one for each of the ten blocks, one for the heads.
    assert rates == pytest.approx([0.01 * 0.8**i for i in range(11, -1, -1)])


def test_the_written_config_is_whole_and_says_what_changed(fork_tool, tmp_path):
    source = "mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py"
    out = tmp_path / "mine.py"
    done = fork_tool("tools/swap_backbone.py", source, "--arch", "tiny", "--out", out)
    assert done.returncode == 0, done.stderr
    text = out.read_text()
    head = text[: text.index("\n\n")]
    assert all(line.startswith("#") for line in head.splitlines())
    assert "model.auxiliary_head.in_channels: 1024 -> 320" in head
    assert "        drop_path_rate: 0.1\n" in head
    assert "        init_cfg: Pretrained, hire-mlp://tiny\n" in head
    assert "optim_wrapper.optimizer: still SGD, lr 0.01; Hire-MLP was trained with AdamW" in head
    assert all(line.strip("# ") in done.stdout for line in head.splitlines()[2:])
    expected = swap_backbone(load(source), "tiny")
    assert Config.fromfile(out).to_dict() == expected.to_dict()
    again = fork_tool("tools/swap_backbone.py", source, "--out", out)
    assert again.returncode == 2
    assert again.stderr.strip().endswith("exists; name another config with --out")
    assert out.read_text() == text


def test_a_config_of_ones_own(fork_tool, tmp_path):
    """A path, from another folder, and the default name."""
    (tmp_path / "my_retinanet.py").write_text(
        load("mmdet::retinanet/retinanet_r50_fpn_1x_coco.py").pretty_text
    )
    tool = find_tool("swap_backbone.py")
    done = fork_tool(tool, "my_retinanet.py", "--arch", "base", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Config.fromfile(tmp_path / "my_retinanet_hire_base.py").model.backbone.arch == "base"


def find_tool(name: str) -> str:
    return str(ROOT / "tools" / name)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere.py"], "config nowhere.py not found"),
        (["nopackage::a.py"], "no package nopackage is installed"),
        (["mmdet::retinanet/retinanet_r50_fpn.py"], r"near it: .*retinanet_r50_fpn_1x_coco\.py"),
        (["mmdet::atss/atss_r50_fpn_1x_coco.py", "--arch", "large"], "--weights FILE or none"),
        (["mmdet::atss/atss_r50_fpn_1x_coco.py", "--weights", "no.pth"], "weight file no.pth not"),
        ([f"{ROOT}/configs/retinanet_hire_t_1x_coco.py"], "model.backbone is HireMLP already"),
        (["mmdet::atss/atss_r50_fpn_1x_coco.py", "--out", "nofolder/a.py"], "a folder that exists"),
    ],
)
def test_errors_are_one_line(fork_tool, tmp_path, args, said):
    done = fork_tool(find_tool("swap_backbone.py"), *args, cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(said, done.stderr)
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_table_counts_families():
    """d builds nowhere; c works only in the second environment; e is refused."""

    def row(family, status, stack="one", config="a.py"):
        name = f"mmdet::{family}/{config}"
        return dict(
            config=name, package="mmdet", family=family, status=status, reason="", stack=stack
        )

    rows = [row("a", "works"), row("a", "refused", config="b.py"), row("b", "works")]
    rows += [row("c", "failed"), row("c", "works", "two"), row("d", "does not build")]
    text = table([*rows, row("e", "refused")])
    assert "| MMDetection | 4 | 3 (75.0 %) | 1 | 1 | 0 |" in text
    assert "| c | `c/a.py` | works in environment 2 |".replace("c/", "") in text
