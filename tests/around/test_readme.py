"""Does every command and snippet of the README and of docs/ run as it stands?

The commands run in a scratch folder with the real tools, data in its usual place and the recipes
cut down to small images and a step or two. What a test machine cannot have is put in its place:
two processes for 8 GPUs, loopback for a second machine, a fake srun.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from mmengine.utils import is_installed
from PIL import Image
from shapes import write_shapes

from hire_mlp_mm.engine.config import find_config
from hire_mlp_mm.weights import WEIGHTS, cached_path
from tests.around.test_configs import training_data
from tests.conftest import ROOT, free_port
from tests.reference import classifier_state
from tests.second_floor.test_export import CAN_EXPORT
from tests.second_floor.test_predict import CLASSES
from tests.second_floor.test_runtime import write_file

# In this order a reader has the checkpoints that a later page asks for.
NAMES = (
    *("data", "pictures", "training", "finetuning", "recipes", "export", "troubleshooting"),
    *("reliability", "performance", "how_it_works"),
)
PAGES = [ROOT / "README.md", *(ROOT / f"docs/{name}.md" for name in NAMES)]
TEXT = "".join(page.read_text() for page in PAGES)
COCO, ADE = "cascade_mask_rcnn_hire_s_coco", "upernet_hire_s_ade20k"
SMALL_COCO = f"""
_base_ = "{ROOT}/configs/{COCO}.py"
load = [
    dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True, with_mask=True)
]
train_dataloader = dict(
    batch_size=1, num_workers=0, persistent_workers=False,
    dataset=dict(indices=2, pipeline=[*load, dict(type="PackDetInputs")]),
)
val_dataloader = dict(
    num_workers=0, persistent_workers=False,
    dataset=dict(indices=2, pipeline=[*_base_.test_pipeline[:1],
        dict(type="Resize", scale=(128, 128), keep_ratio=True), *_base_.test_pipeline[2:]]),
)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=1)
few = 32  # channels, of the heads' maps and vectors
model = dict(
    neck=dict(out_channels=few),
    rpn_head=dict(in_channels=few, feat_channels=few),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=few),
        mask_roi_extractor=dict(out_channels=few),
        bbox_head=[
            dict(head, in_channels=few, fc_out_channels=few)
            for head in _base_.model.roi_head.bbox_head
        ],
        mask_head=dict(in_channels=few, conv_out_channels=few),
    ),
    train_cfg=dict(
        rpn_proposal=dict(max_per_img=16),
        rcnn=[dict(r, sampler=dict(r["sampler"], num=16)) for r in _base_.model.train_cfg.rcnn],
    ),
    # Untrained, so scores are low; without any box there would be no AP.
    test_cfg=dict(rpn=dict(max_per_img=16), rcnn=dict(score_thr=0.0)),
)
"""
SMALL_ADE = f"""
_base_ = "{ROOT}/configs/{ADE}.py"
load = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", reduce_zero_label=True)]
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    dataset=dict(pipeline=[*load, dict(type="PackSegInputs")]),
)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(indices=1))
test_dataloader = val_dataloader

def small(transform):
    '''A resize to an eighth, another transform as it is.'''
    scale = transform.get("scale")
    return dict(transform, scale=(scale[0] // 8, scale[1] // 8)) if scale else transform
test_pipeline = [small(one) for one in _base_.test_pipeline]
tta = _base_.tta_pipeline[1]["transforms"]
tta_pipeline = [
    _base_.tta_pipeline[0],
    dict(type="TestTimeAug", transforms=[[small(t) for t in tta[0]], *tta[1:]]),
]
val_dataloader["dataset"]["pipeline"] = test_pipeline
train_cfg = dict(max_iters=1, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=1))
model = dict(
    data_preprocessor=dict(size=(128, 128)),
    # Shallow: an export takes its time for each block. The detector has the weights and all.
    backbone=dict(
        arch=dict(_delete_=True, depths=(1, 1, 1, 1), dims=(64, 128, 320, 512)), init_cfg=None
    ),
    decode_head=dict(channels=32),
    auxiliary_head=dict(channels=32),
)
"""

# Of the config that `hire-mlp data` writes: one epoch of small images through a shallow network.
SMALL_MINE = " ".join(
    [
        "train_cfg.max_epochs=1 model.backbone.arch.depths=1,1,1,1 model.backbone.init_cfg=None",
        "train_dataloader.num_workers=0 train_dataloader.dataset.pipeline.2.scale=128,128",
        "val_dataloader.num_workers=0 val_dataloader.dataset.pipeline.1.scale=128,128",
        "test_dataloader.dataset.pipeline.1.scale=128,128 model.test_cfg.score_thr=0.0",
    ]
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.M | re.S)


COMMANDS = [
    line.split("  #")[0].strip() for block in blocks("sh") for line in block.splitlines() if line
]


@pytest.fixture
def scratch(tmp_path, monkeypatch) -> Path:
    """A folder as a user has it: tools, configs, data and weights in their usual places."""
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    (tmp_path / "configs").mkdir()
    (tmp_path / f"configs/{COCO}.py").write_text(SMALL_COCO)
    (tmp_path / f"configs/{ADE}.py").write_text(SMALL_ADE)
    ade = tmp_path / "data/ade/ADEChallengeData2016"
    write_shapes(ade, train=4, val=2)
    coco = tmp_path / "data/coco"
    (coco / "annotations").mkdir(parents=True)
    for split, name in (("training", "train2017"), ("validation", "val2017")):
        (coco / name).symlink_to(ade / "images" / split)
        content = json.loads((ade / f"annotations/instances_{split}.json").read_text())
        content["categories"] = [
            dict(id=i + 1, name=name) for i, name in enumerate(CocoDataset.METAINFO["classes"])
        ]
        (coco / f"annotations/instances_{name}.json").write_text(json.dumps(content))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    weights = Path(cached_path(WEIGHTS["small"].url))
    weights.parent.mkdir(parents=True)
    torch.save({"model": classifier_state("small")}, weights)
    (tmp_path / "hire_mlp_small.pth").symlink_to(weights)
    (tmp_path / "my_data").symlink_to(coco)
    (tmp_path / "photographs").symlink_to(coco / "val2017")
    (tmp_path / "srun").write_text("#!/bin/sh\necho asked srun: $@\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv(
        "PATH", f"{Path(sys.executable).parent}:{tmp_path}:{os.environ['PATH']}"
    )  # fmt: skip
    return tmp_path


def adapted(command: str) -> list[str]:
    """The command for this machine; one per machine that it is for."""
    checkpoint = (
        f"work_dirs/{COCO}/epoch_1.pth" if COCO in command else f"work_dirs/{ADE}/iter_1.pth"
    )
    command = command.replace("CHECKPOINT", checkpoint)
    if command.startswith("hire-mlp train mine.py"):
        return [f"{command} --cfg-options {SMALL_MINE}"]
    if command == "pip install .":
        return [f"uv pip install --no-deps --no-build-isolation --target site {ROOT}"]
    if "PHOTOS" in command:  # what a detector is that finds something: test_export, test_runtime
        return []
    if " export " in command:  # a large image takes a while
        return [f"{command} --size 64x64"] if CAN_EXPORT else []
    if command.startswith("make"):
        return [f"make -C {ROOT} --dry-run {command.removeprefix('make ')}"]
    if "dist_" in command:
        command = command.replace(" --amp", "").replace("first-machine", "127.0.0.1")
        # The work dir of the recipe's name has a training already.
        apart = " --work-dir several" if "dist_train" in command else ""
        if "NODE_RANK=0" in command:
            command = re.sub(r" 8$", f" 1{apart}", f"PORT={free_port()} {command}")
            return [command, command.replace("NODE_RANK=0", "NODE_RANK=1")]
        return [re.sub(r" 8$", f" 2{apart}", f"PORT={free_port()} {command}")]
    return [command]


def run_all(commands: list[str], folder: Path) -> str:
    """Run commands of the pages one after the other; what they printed."""
    said = ""
    for command in commands:
        together = [
            subprocess.Popen(
                ["bash", "-c", one], cwd=folder, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
            for one in adapted(command)
        ]  # fmt: skip
        for process in together:
            output = process.communicate(timeout=400)[0]
            assert process.returncode == 0, (command, output[-3000:])
            said += output
    return said


def about(name: str) -> list[str]:
    return [command for command in COMMANDS if name in command]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_commands_of_the_detector(scratch):
    said = run_all(about(COCO), scratch)
    assert len(about(COCO)) == 5
    assert "hire_mlp_small.pth: loaded 793 tensors; dropped 2 without a place here (head)" in said
    assert "resumed epoch: 1" in said
    assert said.count("coco/bbox_mAP: ") >= 2
    assert said.count("coco/segm_mAP: ") >= 2
    assert list((scratch / "pictures").glob("*.jpg"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_commands_of_the_segmentor(scratch):
    said = run_all(about(ADE), scratch)
    assert len(about(ADE)) == 6
    assert len(re.findall(r"Iter\(test\) .*mIoU: \d", said)) == 1
    assert (scratch / "upernet.onnx").exists() == CAN_EXPORT
    assert "asked srun: --partition=PARTITION --job-name=JOB" in said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_commands_of_own_data(scratch, monkeypatch, capsys):
    """Then the lines of Python, which read the same work dir."""
    said = run_all(about("mine"), scratch)
    assert len(about("mine")) == 3
    assert "COCO json: 80 classes" in said
    assert (scratch / "mine_data.png").exists()
    assert "coco/bbox_mAP: " in said
    assert len(list((scratch / "predicted/pictures").glob("*.jpg"))) == 2
    monkeypatch.chdir(scratch)
    (snippet,) = [block for block in blocks("python") if "Predictor(" in block]
    exec(compile(snippet, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()  # barely trained: most scores are below 0.3
    assert [line.split(" [")[0] for line in lines] == ["00000.jpg", "00001.jpg"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_other_commands(scratch):
    others = [c for c in COMMANDS if c not in about(COCO) + about(ADE) + about("mine")]
    assert len(others) == 10
    write_file(scratch / "mask_rcnn.onnx", "detection")
    said = run_all(others, scratch)
    assert "COCO_ROOT" in said
    assert "wrote 793 tensors to backbone.pth" in said
    assert "wrote 795 tensors to classifier.pth" in said
    assert (scratch / "site/hire_mlp_mm/backbone.py").exists()
    assert len(list((scratch / "predicted/pictures").glob("*.jpg"))) == 2
    swapped = Config.fromfile(scratch / "retinanet_r50_fpn_1x_coco_hire_small.py")
    assert swapped.model.backbone.arch == "small"


def drop_in(host: str) -> str:
    """The drop-in snippet of a host; where mmengine cannot find its base by name, with its path.

    The fork of OpenMMLab has no distribution of the name that mmengine wants for `mmseg::`.
    """
    (snippet,) = [block for block in blocks("python") if f'"{host}::' in block]
    name = re.search(r"_base_ = \"(.*?)\"", snippet)[1]
    if host == "mmseg" and not is_installed("mmsegmentation"):
        return snippet.replace(name, str(find_config(name)))
    return snippet


@pytest.mark.parametrize("host", ["mmdet", "mmseg"])
def test_config_snippets(host, scratch):
    """The drop-in snippet, on the config that its host ships, loads weights and trains."""
    (scratch / "mine.py").write_text(drop_in(host))
    cfg = Config.fromfile(scratch / "mine.py")
    if host == "mmseg":
        cfg.model.data_preprocessor.size = (128, 128)
    with DefaultScope.overwrite_default_scope(host):
        model = MODELS.build(cfg.model)
        model.init_weights()
        assert cfg.optim_wrapper.optimizer.type == "AdamW"
        expected = classifier_state("small")["network.6.2.mlp.fc2.weight"]
        assert torch.equal(model.backbone.stages[3].blocks[2].mlp.fc2.weight, expected)
        data = model.data_preprocessor(training_data(cfg, 128), training=True)
        loss = model.parse_losses(model.train()(**data, mode="loss"))[0]
    build_optim_wrapper(model, cfg.optim_wrapper).update_params(loss)
    assert loss.isfinite()
    assert not torch.equal(model.backbone.stages[3].blocks[2].mlp.fc2.weight, expected)


@pytest.mark.parametrize("host", ["mmdet", "mmseg"])
@pytest.mark.parametrize("layer_decay", [False, True])
def test_fine_tuning_snippets(host, layer_decay, scratch):
    """Each, after the drop-in snippet of a host, says what the text says."""
    plain, decayed = [block for block in blocks("python") if "paramwise_cfg" in block]
    (scratch / "mine.py").write_text(drop_in(host))
    snippet = decayed if layer_decay else plain
    (scratch / "tuned.py").write_text(f"_base_ = 'mine.py'\n{snippet}")
    cfg = Config.fromfile(scratch / "tuned.py")
    with DefaultScope.overwrite_default_scope(host), torch.device("meta"):
        model = MODELS.build(cfg.model)
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    assert type(wrapper.optimizer) is torch.optim.AdamW
    base_lr, names = cfg.optim_wrapper.optimizer.lr, {p: n for n, p in model.named_parameters()}
    rates = {}
    for group in wrapper.optimizer.param_groups:
        for p in group["params"]:
            rates[names[p]] = group["lr"] / base_lr
            norm_or_bias = p.ndim == 1
            assert group["weight_decay"] == (
                0 if norm_or_bias else cfg.optim_wrapper.optimizer.weight_decay
            )
    stem = rates["backbone.stem.proj.weight"]
    assert set(rates) == set(names.values())
    assert {rate for name, rate in rates.items() if not name.startswith("backbone.")} == {1}
    assert stem == (pytest.approx(0.9**21) if layer_decay else 1)
    assert "0.9^21 = 0.11" in TEXT
    assert round(0.9**21, 2) == 0.11


@pytest.mark.parametrize("way", ["load_weights(", ".init_weights()"])
def test_python_snippets(way, scratch, capsys):
    """Each leaves a model with the weights loaded."""
    (snippet,) = [block for block in blocks("python") if way in block]
    names: dict = {}
    exec(compile(snippet, "README.md", "exec"), names)
    key = "stages.3.blocks.2.mlp.fc2.weight"
    expected = classifier_state("small")["network.6.2.mlp.fc2.weight"]
    assert torch.equal(names["model"].state_dict()[key], expected)
    if "features" in names:
        assert "loaded 793 tensors" in capsys.readouterr().out
        channels = [str(features.shape[1]) for features in names["features"]]
        assert f"{', '.join(channels[:-1])} and {channels[-1]} channels" in snippet


@pytest.mark.skipif(not CAN_EXPORT, reason="torch is too old for sizes that are free")
def test_export_snippet():
    (snippet,) = [block for block in blocks("python") if "torch.export.export" in block]
    names: dict = {}
    shallow = dict(depths=(1, 1, 1, 1), dims=(8, 12, 16, 20))  # a block takes a second or two
    exec(compile(snippet.replace('"tiny"', repr(shallow)), "export.md", "exec"), names)
    sizes = [tuple(features.shape[2:]) for features in names["maps"]]
    assert sizes == [(32, 17), (16, 9), (8, 5), (4, 3)]


def test_runtime_snippet(tmp_path, monkeypatch):
    write_file(tmp_path / "mask_rcnn.onnx", "detection")
    Image.new("RGB", (64, 48)).save(tmp_path / "street.jpg")
    monkeypatch.chdir(tmp_path)
    (snippet,) = [block for block in blocks("python") if "Runtime(" in block]
    names: dict = {}
    exec(compile(snippet, "export.md", "exec"), names)
    assert names["names"] == list(CLASSES)


NOTEBOOK = [block for block in blocks("python") if "harden(cfg)" in block]


@pytest.mark.parametrize("snippet", NOTEBOOK)
def test_notebook_snippets(snippet, scratch, monkeypatch):
    """Each builds a runner with the promises; test_everywhere.py trains in this way."""
    (scratch / "mine.py").write_text(SMALL_ADE)
    monkeypatch.chdir(scratch)
    runners = []
    monkeypatch.setattr(Runner, "train", lambda runner: runners.append(runner))
    exec(compile(snippet, "page.md", "exec"), {})
    assert {"PlaceHook", "FiniteHook"} <= {type(hook).__name__ for hook in runners[0].hooks}


def test_every_block_is_checked():
    """Each by a test above; one of reliability.md is a line of the drop-in snippets."""
    languages = re.findall(r"^```(\w+)$", TEXT, re.M)
    assert sorted(languages) == sorted(["sh"] * 13 + ["python"] * 12 + ["text"] * 2 + ["bibtex"])
    assert len(NOTEBOOK) == 2


def anchors(page: Path) -> set[str]:
    """Names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda page: page.name
)
def test_every_link_in_the_project_exists(page):
    for link in re.findall(r"\]\((?!http)([^)]+)\)", page.read_text()):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
