"""Do the recipes build, and are they what their docstrings say?"""

from __future__ import annotations

import re

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, DefaultScope
from torch.utils.flop_counter import FlopCounterMode

from hire_mlp_mm.hire_mlp import ARCHS
from tests.conftest import ROOT

CONFIGS = ROOT / "configs"
ARCH_OF = {"t": "tiny", "s": "small", "b": "base", "l": "large"}
# name: parameters in millions, FLOPs in units of 1e9 (PAPER's tables: published, or recomputed
# where nothing was published); a tolerance of 0.1 and 2
PUBLISHED = {
    "cascade_mask_rcnn_hire_t_coco": (75.5, None),
    "cascade_mask_rcnn_hire_s_coco": (90.6, 734),
    "cascade_mask_rcnn_hire_b_coco": (115.7, 813),
    "cascade_mask_rcnn_hire_l_coco": (153.1, None),
    "upernet_hire_t_ade20k": (48.0, 887),
    "upernet_hire_s_ade20k": (63.1, 930),
    "upernet_hire_b_ade20k": (88.2, 1011),
    "upernet_hire_l_ade20k": (127.4, 1125),
}
ALL = sorted(path.stem for path in CONFIGS.glob("*.py") if not path.stem.endswith("shapes"))


def load(name: str) -> Config:
    cfg = Config.fromfile(CONFIGS / f"{name}.py")
    cfg.model.backbone.init_cfg = None
    return cfg


def build(cfg: Config, device: str = "cpu"):
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device(device):
        return MODELS.build(cfg.model)


def test_every_config_is_checked():
    assert set(ALL) == set(PUBLISHED)


def macs(model, name: str) -> float:
    """Multiply-adds of a test forward without post-processing, in units of 1e9."""
    with FlopCounterMode(display=False) as counter:
        if name.startswith("upernet"):
            model.decode_head(model.backbone(torch.empty(1, 3, 512, 2048, device="meta")))
        else:
            levels = model.neck(model.backbone(torch.empty(1, 3, 800, 1280, device="meta")))
            model.rpn_head(levels)
            for box_head, mask_head in zip(
                model.roi_head.bbox_head, model.roi_head.mask_head, strict=True
            ):
                box_head(torch.empty(1000, 256, 7, 7, device="meta"))
                mask_head(torch.empty(100, 256, 14, 14, device="meta"))
    return counter.get_total_flops() / 2e9


@pytest.mark.parametrize("name", ALL)
def test_parameters_and_flops(name):
    model = build(load(name), "meta").eval()
    parameters, flops = PUBLISHED[name]
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters, abs=0.1)
    if flops:
        assert macs(model, name) == pytest.approx(flops, abs=2)
    said = re.findall(r"(\d+(?:\.\d+)?) M parameters", (CONFIGS / f"{name}.py").read_text())
    assert len(said) == 1
    assert float(said[0]) == pytest.approx(parameters, abs=0.5)


@pytest.mark.parametrize("name", ALL)
def test_name_and_content_agree(name):
    _, size, data = re.fullmatch(r"(\w+)_hire_([tsbl])_(coco|ade20k)", name).groups()
    cfg = Config.fromfile(CONFIGS / f"{name}.py")
    arch = ARCH_OF[size]
    assert cfg.model.backbone.type == "HireMLP"
    assert cfg.model.backbone.arch == arch
    assert cfg.model.backbone.init_cfg == dict(type="Pretrained", checkpoint=f"hire-mlp://{arch}")
    dims = list(ARCHS[arch].dims)
    reader = cfg.model.neck if data == "coco" else cfg.model.decode_head
    assert reader.in_channels == dims
    if data == "ade20k":
        assert cfg.model.auxiliary_head.in_channels == dims[2]


def training_data(cfg: Config, size: int):
    """A batch of two images for the model's kind, with something to learn in each."""
    images = [torch.randint(0, 256, (3, size, size), dtype=torch.uint8) for _ in range(2)]
    if cfg.default_scope == "mmdet":
        from mmdet.testing import demo_mm_inputs

        data = demo_mm_inputs(2, [(3, size, size)] * 2, with_mask=True, num_classes=80)
        return dict(inputs=images, data_samples=data["data_samples"])
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = []
    for image in images:
        sample = SegDataSample(metainfo=dict(img_shape=image.shape[1:], ori_shape=image.shape[1:]))
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 150, (1, size, size)))
        samples.append(sample)
    return dict(inputs=images, data_samples=samples)


@pytest.mark.parametrize("name", ALL)
def test_one_training_step(name):
    cfg = load(name)
    if cfg.default_scope == "mmseg":
        cfg.model.data_preprocessor.size = (128, 128)
    else:  # fewer RoIs: the heads' time is proportional to them
        for stage in cfg.model.train_cfg.rcnn:
            stage.sampler.num = 16
    model = build(cfg).train()
    data = model.data_preprocessor(training_data(cfg, 128), training=True)
    losses = model.parse_losses(model(**data, mode="loss"))[0]
    losses.backward()
    assert losses.isfinite()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


def learning_rates(name: str, iterations: list[int], epoch_length: int = 1000) -> list[float]:
    """Learning rate at some iterations, with mmengine's schedulers stepped as its hook does."""
    cfg = load(name)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=cfg.optim_wrapper.optimizer.lr)
    schedulers = [
        PARAM_SCHEDULERS.build(s, default_args=dict(optimizer=optimizer))
        for s in cfg.param_scheduler
    ]
    rates = []
    for i in range(max(iterations) + 1):
        if i in iterations:
            rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            if not scheduler.by_epoch or (i + 1) % epoch_length == 0:
                scheduler.step()
    return rates


def test_upernet_schedule_is_the_official_one():
    """mmcv 1.x: poly of power 1 over 80k, times a linear warm-up over 800 from 1e-6."""
    iterations = [0, 1, 400, 799, 800, 5000]
    expected = [
        1.2e-4 * (1 - i / 80000) * (1 - (1 - min(i, 800) / 800) * (1 - 1e-6)) for i in iterations
    ]
    assert learning_rates("upernet_hire_s_ade20k", iterations) == pytest.approx(expected, rel=1e-6)


def test_cascade_schedule_steps_at_27_and_33():
    """36 epochs, told here with epochs of 100 iterations."""
    rates = learning_rates("cascade_mask_rcnn_hire_s_coco", [0, 1500, 2650, 2750, 3350], 100)
    assert rates == pytest.approx([1e-7, 1e-4, 1e-4, 1e-5, 1e-6], rel=1e-3)


def test_weight_decay():
    """Cascade: none on norms; UperNet: on everything, as the authors' config has it."""
    for name, on_norms in (("cascade_mask_rcnn_hire_t_coco", 0), ("upernet_hire_t_ade20k", 0.01)):
        cfg = load(name)
        model = build(cfg)
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
        decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
        base = cfg.optim_wrapper.optimizer.weight_decay
        assert decay[id(model.backbone.stem.norm.weight)] == on_norms
        assert decay[id(model.backbone.norm2.bias)] == on_norms
        assert decay[id(model.backbone.stem.proj.weight)] == base


def test_no_base_outside_the_configs():
    for path in CONFIGS.rglob("*.py"):
        text = path.read_text()
        assert "::" not in text, path
        assert "openmmlab.com" not in text, path


@pytest.mark.parametrize("value", ["/somewhere", "/somewhere/"])
def test_data_roots_come_from_the_environment(value, monkeypatch):
    monkeypatch.setenv("COCO_ROOT", value)
    monkeypatch.setenv("ADE_ROOT", value)
    coco = Config.fromfile(CONFIGS / "cascade_mask_rcnn_hire_s_coco.py")
    assert coco.train_dataloader.dataset.data_root == value
    annotations = coco.test_evaluator.ann_file.replace("//", "/")
    assert annotations == "/somewhere/annotations/instances_val2017.json"
    ade = Config.fromfile(CONFIGS / "upernet_hire_s_ade20k.py")
    assert ade.test_dataloader.dataset.data_root == value
