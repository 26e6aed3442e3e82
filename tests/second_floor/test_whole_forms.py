"""Do whole models give the plain one's numbers in every form, and is what cannot be refused?"""

from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hire_mlp_mm.bench.wholes import batch_of, picture
from hire_mlp_mm.engine.forms import DROPOUTS, FormHook, fuse_model, half_type, mix_precision
from hire_mlp_mm.engine.options import use_form
from hire_mlp_mm.errors import UserError
from hire_mlp_mm.hire_mlp import HireMLPNet
from tests.conftest import NANO, ROOT, needs_compiler
from tests.second_floor.test_predict import DIMS, MODELS_OF, randomised

GN = dict(type="GN", num_groups=2)
BN, SYNC_BN = dict(type="BN"), dict(type="SyncBN")
SMALL = f"backbone=dict(arch=dict(_delete_=True, **{NANO}))"
MODELS_WITH = {
    **MODELS_OF,
    "one stage": f"""
_base_ = "{ROOT}/configs/retinanet_hire_nano_shapes.py"
model = dict({SMALL}, neck=dict(in_channels={DIMS[1:]}, norm_cfg=dict(type="BN")))
""",
    "semantic FPN": f"""
_base_ = "{ROOT}/configs/semantic_fpn_hire_s_ade20k.py"
model = dict({SMALL}, neck=dict(in_channels={DIMS}), decode_head=dict(num_classes=3))
""",
}
TASKS = ["detection", "segmentation", "classification"]


def build(task: str, text: str = "") -> tuple[nn.Module, Any]:
    """A model with random weights and norms, and its config."""
    cfg = Config.fromstring(MODELS_WITH[task] + text, ".py")
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = randomised(MODELS.build(cfg.model))
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            for value, low in ((module.running_mean, -0.2), (module.running_var, 0.7)):
                value.uniform_(low, low + 0.6)
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    return model.eval(), cfg


def batch(cfg: Any, height: int = 96, width: int = 128) -> dict[str, Any]:
    """A batch of one image, as a data loader gives it."""
    return batch_of([picture(height, width)], cfg.default_scope)


def tensors(outputs: Any) -> list[Tensor]:
    """The tensors in nested tuples and lists."""
    if isinstance(outputs, Tensor):
        return [outputs]
    return [one for part in outputs for one in tensors(part)]


def formed(model: nn.Module, **options: Any) -> tuple[nn.Module, FormHook]:
    """A copy of a model in the form that a test with these options gives it, and what gave it."""
    runner = SimpleNamespace(model=copy.deepcopy(model), logger=Mock())
    hook = FormHook(**options)
    hook.before_test_epoch(runner)
    return runner.model, hook


# Fused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", MODELS_WITH)
def test_a_fused_model_is_exact(task):
    model, cfg = build(task)
    fused = fuse_model(model.double())
    with torch.no_grad(), DefaultScope.overwrite_default_scope(cfg.default_scope):
        data = model.data_preprocessor(batch(cfg))
        data["inputs"] = data["inputs"].double()
        ours, theirs = (tensors(one(**data, mode="tensor")) for one in (fused, model))
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    assert not any(isinstance(m, (_BatchNorm, *DROPOUTS)) for m in fused.modules())
    assert getattr(fused, "auxiliary_head", None) is None
    assert any(isinstance(m, _BatchNorm) for m in model.modules())
    assert (getattr(model, "auxiliary_head", None) is not None) == (task == "segmentation")


@pytest.mark.parametrize(
    ("options", "folds"),
    [
        (dict(norm_cfg=BN), True),
        (dict(norm_cfg=SYNC_BN), True),
        (dict(norm_cfg=BN, bias=True, act_cfg=None, conv_cfg=dict(type="Conv2d")), True),
        (dict(norm_cfg=BN, order=("act", "conv", "norm"), groups=2), True),
        (dict(norm_cfg=BN, padding_mode="reflect", padding=1), True),
        (dict(norm_cfg=dict(BN, affine=False)), True),
        (dict(norm_cfg=GN), False),
        (dict(norm_cfg=BN, order=("norm", "conv", "act")), False),
        (dict(norm_cfg=BN, order=("conv", "act", "norm")), False),
        (dict(norm_cfg=BN, conv_cfg=dict(type="ConvWS")), False),
        (dict(norm_cfg=BN, with_spectral_norm=True), False),
        (dict(norm_cfg=dict(BN, track_running_stats=False)), False),
        (dict(), False),
    ],
)
def test_what_is_folded_and_what_is_left(options, folds):
    block = ConvModule(4, 4, 3, **options)
    if isinstance(block.norm, _BatchNorm) and block.norm.running_mean is not None:
        block.norm.running_mean.uniform_(-1, 1)
        block.norm.running_var.uniform_(0.5, 2)
    model = nn.ModuleDict(dict(backbone=HireMLPNet(NANO), block=block)).double().eval()
    fused = fuse_model(model)["block"]
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), block(x), rtol=1e-10, atol=1e-10)
    assert (fused.norm is None) == (folds or not options)
    assert (block.norm is None) == (not options)


def test_convolutions_that_share_a_weight_have_each_its_own_norm():
    first, second = (ConvModule(4, 4, 3, norm_cfg=BN) for _ in range(2))
    second.conv = first.conv
    second.bn.running_var.fill_(4)
    model = nn.ModuleDict(dict(backbone=HireMLPNet(NANO), a=first, b=second)).double().eval()
    fused = fuse_model(model)
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    for name in "ab":
        torch.testing.assert_close(fused[name](x), model[name](x), rtol=1e-10, atol=1e-10)


# All forms --------------------------------------------------------------------------------------


FORMS = [
    dict(fused=fused, dtype=dtype, channels_last=last)
    for fused, dtype, last in itertools.product([False, True], [None, "auto"], [False, True])
][1:]


def assert_near(found: Any, plain: Any, task: str, exact: bool) -> None:
    """Compare data samples, to float32's rounding or to bfloat16's."""
    if task == "detection":
        ours, theirs = found.pred_instances, plain.pred_instances
        assert ours.scores.dtype == ours.bboxes.dtype == torch.float32
        assert len(ours) == len(theirs) > 3
        near = dict(rtol=1e-3, atol=1e-3) if exact else dict(rtol=0.1, atol=0.05)
        torch.testing.assert_close(ours.scores, theirs.scores, **near)
        if exact:
            torch.testing.assert_close(ours.bboxes, theirs.bboxes, rtol=1e-3, atol=0.02)
            assert (ours.masks != theirs.masks).float().mean() < 1e-3
    elif task == "segmentation":
        logits = found.seg_logits.data
        assert logits.dtype == torch.float32
        differ = (found.pred_sem_seg.data != plain.pred_sem_seg.data).float().mean()
        assert differ < (1e-3 if exact else 0.1)
    else:
        assert found.pred_score.dtype == torch.float32
        assert (found.pred_score - plain.pred_score).abs().max() < (1e-4 if exact else 0.05)


def check_form(task: str, form: dict[str, Any]) -> None:
    model, cfg = build(task)
    changed, hook = formed(model, **form)
    seen = set()
    changed.backbone.stages[0].register_forward_hook(lambda *call: seen.add(call[2].dtype))
    data = batch(cfg)
    with torch.no_grad(), DefaultScope.overwrite_default_scope(cfg.default_scope):
        (plain,) = model.test_step(copy.deepcopy(data))
        (found,) = changed.test_step(data)
    hook.after_run(None)
    assert_near(found, plain, task, exact=form["dtype"] is None)
    assert seen == {torch.float32 if form["dtype"] is None else torch.bfloat16}
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "+".join(k for k in form if form[k]))
@pytest.mark.parametrize("task", TASKS)
def test_every_form_is_near_the_plain_model(task, form):
    check_form(task, form)


@pytest.mark.slow
@needs_compiler
@pytest.mark.timeout(600)
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", [None, "auto"])
def test_every_form_is_near_when_compiled(dtype, fused):
    check_form("detection", dict(fused=fused, dtype=dtype, channels_last=fused, compiled=True))


@pytest.mark.parametrize("dtype", [None, "auto"])
def test_a_second_test_of_a_runner_is_in_the_form_of_the_first(dtype):
    model, cfg = build("classification")
    runner = SimpleNamespace(model=model, logger=Mock())
    hook = FormHook(fused=True, dtype=dtype)
    results = []
    for _ in range(2):
        hook.before_test_epoch(runner)
        with torch.no_grad(), DefaultScope.overwrite_default_scope(cfg.default_scope):
            results.append(runner.model.test_step(batch(cfg))[0].pred_score)
        hook.after_run(runner)
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_a_form_of_training_is_not_one_of_tests_and_the_command_has_the_last_word():
    cfg = Config(dict(custom_hooks=[dict(type="EMAHook")]))
    use_form(cfg, training=True, dtype="auto")
    use_form(cfg, dtype=None, fused=False)
    use_form(cfg, fused=True, channels_last=False)
    use_form(cfg, dtype="bfloat16")
    kind = "hire_mlp_mm.FormHook"
    assert cfg.custom_hooks[1:] == [
        dict(type=kind, training=True, dtype="auto"),
        dict(type=kind, training=False, dtype="bfloat16"),
    ]
    model, _ = build("classification")
    for hook in (FormHook(training=True, channels_last=True), FormHook(channels_last=True)):
        runner = SimpleNamespace(model=copy.deepcopy(model), logger=Mock())
        event = "before_test_epoch" if hook.training else "before_train"
        getattr(hook, event)(runner)
        x = torch.randn(1, 3, 64, 64)
        assert all(map_.is_contiguous() for map_ in runner.model.backbone(x))


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel])
def test_weights_that_are_shared_already_stay_as_they_are(wrap):
    """DistributedDataParallel would mix up the first gradients of others."""
    model, _ = build("classification")
    before = copy.deepcopy(model.state_dict())
    runner = SimpleNamespace(model=wrap(model), logger=Mock())
    FormHook(training=True, channels_last=True).before_train(runner)
    laid = [model.state_dict()[key].stride() == value.stride() for key, value in before.items()]
    assert all(laid) == (runner.model is not model)
    maps = model.backbone(torch.randn(1, 3, 64, 64))
    assert all(map_.is_contiguous(memory_format=torch.channels_last) for map_ in maps)


# Mixed precision --------------------------------------------------------------------------------


def test_rois_and_boxes_are_not_rounded():
    """Bfloat16 has steps of 4 between 512 and 1024."""
    model, cfg = build("detection")
    mix_precision(model, torch.bfloat16)
    extractors = [*model.roi_head.bbox_roi_extractor, *model.roi_head.mask_roi_extractor]
    rois, maps, levels = [], [], len(extractors[0].roi_layers)
    for extractor in extractors:
        extractor.register_forward_pre_hook(lambda _, inputs: maps.extend(inputs[0]))
        for layer in extractor.roi_layers:
            layer.register_forward_pre_hook(lambda _, inputs: rois.append(inputs[1]))
    with torch.no_grad(), DefaultScope.overwrite_default_scope(cfg.default_scope):
        (found,) = model.test_step(batch(cfg, 600, 900))
    for boxes in (torch.cat(rois), found.pred_instances.bboxes):
        assert boxes.dtype == torch.float32
        assert (boxes.bfloat16() != boxes).any()
    assert {one.dtype for one in maps} == {torch.float32}
    assert len(maps) > levels == len(set(map(id, maps)))  # converted once for all stages


def test_what_follows_the_heads_is_computed_without_autocast():
    model, cfg = build("one stage")
    mix_precision(model, torch.bfloat16)
    head, seen = model.bbox_head, []
    inner = head.bbox_coder.decode
    head.bbox_coder.decode = lambda *args, **options: (
        seen.append((torch.is_autocast_enabled("cpu"), {arg.dtype for arg in args[:2]})),
        inner(*args, **options),
    )[1]
    with torch.no_grad(), DefaultScope.overwrite_default_scope(cfg.default_scope):
        model.test_step(batch(cfg))
    assert seen == [(False, {torch.float32})]


def test_a_model_that_fails_leaves_autocast():
    """Else what comes after an image that was refused would be computed in it, too."""
    model, _ = build("classification")
    mix_precision(model, torch.bfloat16)
    with pytest.raises(ValueError, match=r"expected \(N, 3, H, W\)"):
        model(torch.randn(1, 4, 64, 64))
    assert not torch.is_autocast_enabled("cpu")


def test_test_time_augmentation_is_in_mixed_precision():
    from mmseg.models import SegTTAModel

    model, cfg = build("segmentation")
    tta = SegTTAModel(module=model)
    changed, _ = formed(tta, fused=True, dtype="bfloat16")
    seen = []
    changed.module.backbone.register_forward_hook(lambda *call: seen.append(call[2][0].dtype))
    data = batch(cfg)
    data["data_samples"][0].set_metainfo(dict(flip=False, flip_direction=None, img_path="a"))
    twice = {key: [value, value] for key, value in data.items()}
    with torch.no_grad(), DefaultScope.overwrite_default_scope(cfg.default_scope):
        changed.test_step(twice)
    assert seen == [torch.bfloat16] * 2


@pytest.mark.parametrize(
    ("name", "device", "dtype"),
    [
        ("auto", "cpu", torch.bfloat16),
        ("auto", "cuda:1", torch.float16),
        ("bfloat16", "cuda", torch.bfloat16),
        ("float16", "cuda", torch.float16),
    ],
)
def test_the_type_is_chosen_by_the_device(name, device, dtype):
    assert half_type(name, device) == dtype


@pytest.mark.parametrize(
    ("name", "line"),
    [("float16", "float16 on a CPU: expected bfloat16"), ("int8", "dtype int8: expected one of")],
)
def test_a_type_that_cannot_be_is_refused(name, line):
    with pytest.raises(UserError, match=line):
        half_type(name, "cpu")


@pytest.mark.parametrize(
    ("text", "form", "line"),
    [
        ("model['backbone']['with_cp'] = True", dict(compiled=True), "expected with_cp=False"),
        ("model['backbone']['shift_padding'] = 'zero'", dict(fused=True), "--fuse: backbone"),
    ],
)
def test_forms_that_a_config_rules_out_are_refused_in_a_line(text, form, line):
    model, _ = build("segmentation", text)
    with pytest.raises(UserError, match=line) as error:
        formed(model, **form)
    assert "\n" not in str(error.value)
