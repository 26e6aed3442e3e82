"""Does layer-wise learning-rate decay give every parameter its rate, in every host?"""

from __future__ import annotations

import copy
import re
from collections import Counter

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, DefaultScope
from mmengine.structures import PixelData
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hire_mlp_mm import HireMLP
from hire_mlp_mm.arch import ARCHS
from tests.conftest import NANO, WITHOUT_OPS

BACKBONE = dict(type="HireMLP", arch=NANO)
LAYERS = sum(NANO["depths"]) + 2
DIMS = list(NANO["dims"])
CLASSES = 4
DETECTOR = dict(
    type="RetinaNet",
    data_preprocessor=dict(type="DetDataPreprocessor", mean=[0] * 3, std=[255] * 3),
    backbone=BACKBONE,
    neck=dict(type="FPN", in_channels=DIMS, out_channels=8, num_outs=5),
    bbox_head=dict(
        type="RetinaHead",
        num_classes=CLASSES,
        in_channels=8,
        feat_channels=8,
        stacked_convs=1,
        anchor_generator=dict(
            type="AnchorGenerator", scales=[4], ratios=[1.0], strides=[4, 8, 16, 32, 64]
        ),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder"),
    ),
    train_cfg=dict(
        assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
        sampler=dict(type="PseudoSampler"),
        allowed_border=-1,
        pos_weight=-1,
    ),
)
SEGMENTOR = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor", mean=[0] * 3, std=[255] * 3, size=(64, 64), seg_pad_val=255
    ),
    backbone=BACKBONE,
    decode_head=dict(
        type="FPNHead",
        in_channels=DIMS,
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=8,
        num_classes=CLASSES,
        norm_cfg=dict(type="BN"),
    ),
    test_cfg=dict(mode="whole"),
)
CLASSIFIER = dict(
    type="ImageClassifier",
    data_preprocessor=dict(mean=[0] * 3, std=[255] * 3, num_classes=CLASSES),
    backbone=BACKBONE,
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=CLASSES, in_channels=DIMS[3]),
)
HOSTS = {"mmdet": DETECTOR, "mmseg": SEGMENTOR, "mmpretrain": CLASSIFIER}
OURS = "LayerDecayOptimWrapperConstructor"
LR, WD = 1e-3, 0.05


def build(host: str, **backbone):
    cfg = copy.deepcopy(HOSTS[host])
    cfg["backbone"] |= backbone
    with DefaultScope.overwrite_default_scope(host):
        return MODELS.build(cfg).train()


def batch(host: str) -> dict:
    """Two images and something to learn in each."""
    images = [torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8) for _ in range(2)]
    if host == "mmdet":
        from mmdet.testing import demo_mm_inputs

        data = demo_mm_inputs(2, [(3, 64, 64)] * 2, num_classes=CLASSES)
        return dict(inputs=images, data_samples=data["data_samples"])
    samples = []
    for i in range(2):
        if host == "mmseg":
            from mmseg.structures import SegDataSample

            sample = SegDataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64)))
            sample.gt_sem_seg = PixelData(data=torch.randint(0, CLASSES, (1, 64, 64)))
        else:
            from mmpretrain.structures import DataSample

            sample = DataSample().set_gt_label(i)
        samples.append(sample)
    inputs = torch.stack(images) if host == "mmpretrain" else images
    return dict(inputs=inputs, data_samples=samples)


def optim_wrapper(host: str, model, rate: float | None = 0.5, constructor: str = OURS, **options):
    paramwise = options if rate is None else dict(decay_rate=rate, **options)
    cfg = dict(
        type="OptimWrapper",
        optimizer=dict(type="AdamW", lr=LR, weight_decay=WD),
        constructor=constructor,
        paramwise_cfg=paramwise,
    )
    with DefaultScope.overwrite_default_scope(host):
        return build_optim_wrapper(model, cfg)


def settings(wrapper) -> dict[str, dict]:
    """Name of a parameter to its group; every name once."""
    pairs = [(n, g) for g in wrapper.optimizer.param_groups for n in g["param_names"]]
    assert max(Counter(n for n, _ in pairs).values()) == 1
    return dict(pairs)


def expected_layer(name: str, depths) -> int:
    """The map, said a second time: by counting blocks."""
    order = [f"stages.{i}.blocks.{j}." for i, depth in enumerate(depths) for j in range(depth)]
    first = [order.index(f"stages.{i}.blocks.0.") for i in range(len(depths))]
    for i, depth in enumerate(depths):
        if name.startswith(f"stages.{i}.downsample."):
            return first[i] + 1
        if name.startswith(f"norm{i}."):
            return first[i] + depth
    return next((k + 1 for k, block in enumerate(order) if name.startswith(block)), 0)


# The map ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", [*ARCHS, NANO])
@pytest.mark.parametrize("prefix", ["", "backbone.", "model.img_backbone."])
def test_every_parameter_has_a_layer(arch, prefix):
    with torch.device("meta"):
        model = HireMLP(arch)
    depths = model.arch.depths
    found = set()
    for name, _ in model.named_parameters():
        layer, layers = model.get_layer_depth(prefix + name, prefix)
        assert layers == sum(depths) + 2
        assert layer == expected_layer(name, depths), name
        assert (layer == 0) == name.startswith("stem.")
        found.add(layer)
    assert found == set(range(sum(depths) + 1))
    if prefix:
        assert model.get_layer_depth("head.fc.weight", prefix) == (layers - 1, layers)


@pytest.mark.parametrize("arch", [*ARCHS, NANO])
def test_layers_are_in_the_order_of_the_forward_pass(arch):
    with torch.device("meta"):
        model = HireMLP(arch).eval()
    order = []
    for name, module in model.named_modules():
        for parameter, _ in module.named_parameters(recurse=False):
            layer = model.get_layer_depth(f"{name}.{parameter}")[0]
            module.register_forward_pre_hook(lambda *_, layer=layer: order.append(layer))
    model(torch.empty(1, 3, 64, 64, device="meta"))
    assert len(order) == len(list(model.parameters()))
    assert order == sorted(order)


@pytest.mark.parametrize("out_indices", [(0,), (0, 1), (2,), (1, 3)])
def test_only_built_stages_count(out_indices):
    model = HireMLP(NANO, out_indices=out_indices)
    built = NANO["depths"][: out_indices[-1] + 1]
    depths = [model.get_layer_depth(name) for name, _ in model.named_parameters()]
    assert {layers for _, layers in depths} == {sum(built) + 2}
    assert {layer for layer, _ in depths} == set(range(sum(built) + 1))


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("head.fc.weight", ""),
        ("backbone.stem.proj.weight", ""),
        ("backbone.module.stem.proj.weight", "backbone."),
        ("backbone.stages.0.gamma", "backbone."),
        ("backbone.stemming.weight", "backbone."),
    ],
)
def test_a_strange_name_is_an_error(name, prefix):
    with pytest.raises(ValueError, match=re.escape(repr(name))):
        HireMLP(NANO).get_layer_depth(name, prefix)


# The constructor --------------------------------------------------------------------------------


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("rate", [0.5, 0.9, 1])
def test_learning_rates(host, rate):
    model = build(host)
    found = settings(optim_wrapper(host, model, rate))
    assert set(found) == {name for name, _ in model.named_parameters()}
    heads = 0
    for name, group in found.items():
        inside = name.startswith("backbone.")
        layer = LAYERS - 1
        if inside:
            layer = expected_layer(name.removeprefix("backbone."), NANO["depths"])
        scale = rate ** (LAYERS - 1 - layer)
        assert group["lr"] == pytest.approx(LR * scale, rel=1e-12), name
        assert (group["layer_id"], group["lr_scale"]) == (layer, pytest.approx(scale)), name
        assert inside or group["lr"] == LR
        heads += not inside
    assert heads >= 2


@pytest.mark.parametrize("host", HOSTS)
def test_few_groups_with_names(host):
    model = build(host)
    parameters = dict(model.named_parameters())
    for options, kinds in (dict(), 1), (dict(norm_decay_mult=0.0, bias_decay_mult=0.0), 2):
        groups = optim_wrapper(host, model, **options).optimizer.param_groups
        assert len(groups) == LAYERS * kinds
        for group in groups:
            assert [parameters[n] for n in group["param_names"]] == group["params"]


@pytest.mark.parametrize("host", HOSTS)
def test_decay_multiplies_with_paramwise_cfg(host):
    model = build(host)
    options = dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.5,
        bias_lr_mult=2.0,
        custom_keys={"backbone.stem": dict(lr_mult=0.1, decay_mult=0.2), "norm3": dict(lr_mult=3)},
    )
    norms = {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, (_BatchNorm, nn.GroupNorm))
        for name, _ in module.named_parameters()
    }
    for name, group in settings(optim_wrapper(host, model, 0.9, **options)).items():
        lr, decay = 1.0, 1.0
        if "backbone.stem" in name:
            lr, decay = 0.1, 0.2
        elif "norm3" in name:
            lr = 3.0
        elif name in norms:
            decay = 0.0
        elif name.endswith("bias"):
            lr, decay = 2.0, 0.5
        assert group["lr"] == pytest.approx(LR * lr * group["lr_scale"]), name
        assert group["weight_decay"] == pytest.approx(WD * decay), name


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "GN", "mmpretrain.LN2d"])
@pytest.mark.parametrize("constructor", [OURS, "DefaultOptimWrapperConstructor"])
def test_no_decay_on_norms_and_biases(norm, constructor):
    """The two options reach every vector of HireMLP and no matrix, with each kind of norm."""
    norm_cfg = dict(type=norm, num_groups=2) if norm == "GN" else dict(type=norm)
    model = build("mmpretrain", norm_cfg=norm_cfg)
    rate = 0.9 if constructor == OURS else None
    wrapper = optim_wrapper(
        "mmpretrain", model, rate, constructor, norm_decay_mult=0.0, bias_decay_mult=0.0
    )
    for group in wrapper.optimizer.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0 if parameter.ndim == 1 else WD)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("name", [OURS, f"hire_mlp_mm.{OURS}"])
def test_a_step_and_a_scheduler(host, name):
    model = build(host)
    wrapper = optim_wrapper(host, model, 0.5, name)
    groups = wrapper.optimizer.param_groups
    schedulers = [
        dict(type="LinearLR", start_factor=0.5, by_epoch=False, begin=0, end=2),
        dict(type="CosineAnnealingLR", by_epoch=False, begin=2, T_max=4, eta_min_ratio=0.01),
    ]
    with DefaultScope.overwrite_default_scope(host):
        schedulers = [PARAM_SCHEDULERS.build(dict(s, optimizer=wrapper)) for s in schedulers]
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    factors = []
    for _ in range(6):
        factor = {round(group["lr"] / (LR * group["lr_scale"]), 9) for group in groups}
        assert len(factor) == 1  # a schedule keeps the ratios of the layers
        factors += factor
        assert wrapper.get_lr()["base_lr"] == [pytest.approx(LR * factors[-1])]
        data = model.data_preprocessor(batch(host), training=True)
        loss = model.parse_losses(model(**data, mode="loss"))[0]
        assert loss.isfinite()
        wrapper.update_params(loss)
        if len(factors) == 1:
            moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
            assert {n for n in before if n.startswith("backbone.")} - moved <= still(model)
        for scheduler in schedulers:
            scheduler.step()
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[3:] == sorted(factors[3:], reverse=True)
    assert factors[-1] < 0.6


def still(model) -> set[str]:
    """Parameters with no gradient: a classifier reads the last output only."""
    return {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}


def test_resume(tmp_path):
    """The optimizer's state goes through a file that is read as data only."""
    model = build("mmpretrain")
    wrapper = optim_wrapper("mmpretrain", model, 0.5, norm_decay_mult=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    wrapper.step()
    torch.save(wrapper.state_dict(), tmp_path / "state.pth")
    other = optim_wrapper("mmpretrain", model, 0.9, norm_decay_mult=0.0)
    other.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    pairs = zip(settings(other).items(), settings(wrapper).items(), strict=True)
    for (name, group), (same_name, same) in pairs:
        assert (name, group["lr"]) == (same_name, same["lr"])


def test_adams_first_step_is_as_long_as_the_rate():
    """Adam's first step is lr * sign(gradient): the rates reach the weights."""
    model = build("mmpretrain").double()
    wrapper = optim_wrapper("mmpretrain", model, 0.5, custom_keys={"": dict(decay_mult=0.0)})
    found = settings(wrapper)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    wrapper.step()
    for name, parameter in model.named_parameters():
        moved = (before[name] - parameter.detach()).mean().item()
        assert moved == pytest.approx(found[name]["lr"], rel=1e-6), name


@pytest.mark.parametrize("frozen_stages", [0, 2, 4])
def test_frozen_parameters_are_left_out(frozen_stages):
    model = build("mmseg", frozen_stages=frozen_stages)
    found = settings(optim_wrapper("mmseg", model))
    assert set(found) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert found["backbone.norm3.weight"]["layer_id"] == LAYERS - 2  # freezing renumbers nothing


def test_a_shared_parameter_counts_once():
    model = build("mmdet")
    model.twin = model.bbox_head.retina_cls
    model.backbone_ema = model.backbone
    found = settings(optim_wrapper("mmdet", model, norm_decay_mult=0.0))
    assert set(found) == {name for name, _ in model.named_parameters()}


class Wrapped(nn.Module):
    """Names as DistributedDataParallel, FSDP and others give them, without a process group."""

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        self.add_module(name, module)


@pytest.mark.parametrize("name", ["module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_wrapped_backbone_and_blocks(name):
    plain = [g["lr"] for g in settings(optim_wrapper("mmseg", build("mmseg"))).values()]
    model = build("mmseg")
    model.backbone.stages[2].blocks[1] = Wrapped(model.backbone.stages[2].blocks[1], name)
    model.backbone.stages[3] = Wrapped(model.backbone.stages[3], name)
    model.backbone = Wrapped(model.backbone, name)
    found = [g["lr"] for g in settings(optim_wrapper("mmseg", model)).values()]
    assert sorted(found) == sorted(plain)


def test_ddp(tmp_path):
    """MMEngine's two wrappers, in a process group of one."""
    from mmengine.model import MMDistributedDataParallel, MMSeparateDistributedDataParallel

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1
    )
    try:
        model = build("mmseg")
        plain = [g["lr"] for g in settings(optim_wrapper("mmseg", model)).values()]
        for wrapper in MMDistributedDataParallel, MMSeparateDistributedDataParallel:
            found = settings(optim_wrapper("mmseg", wrapper(model)))
            assert [g["lr"] for g in found.values()] == plain
    finally:
        torch.distributed.destroy_process_group()


def test_compiled_backbone():
    model = build("mmseg")
    plain = [g["lr"] for g in settings(optim_wrapper("mmseg", model)).values()]
    model.backbone = torch.compile(model.backbone)
    found = settings(optim_wrapper("mmseg", model))
    assert any("_orig_mod" in name for name in found)
    assert [g["lr"] for g in found.values()] == plain


def test_bare_backbone():
    found = settings(optim_wrapper("mmengine", HireMLP(NANO), 0.5))
    assert found["stem.proj.weight"]["lr"] == LR * 0.5 ** (LAYERS - 1)
    assert found["norm3.weight"]["lr"] == LR * 0.5


def test_two_backbones():
    """Each with its own number of layers, as in a student and a teacher."""
    model = nn.Module()
    model.teacher = HireMLP(NANO, out_indices=(0,))
    model.student = HireMLP(NANO)
    model.head = nn.Linear(2, 2)
    found = settings(optim_wrapper("mmengine", model, 0.5))
    assert found["teacher.stem.proj.weight"]["lr"] == LR * 0.5**2
    assert found["student.stem.proj.weight"]["lr"] == LR * 0.5 ** (LAYERS - 1)
    assert found["head.weight"]["lr"] == LR


def test_another_backbone_that_knows_its_layers():
    """MMPretrain's ConvNeXt in a detector, where MMPretrain's own constructor refuses."""
    cfg = copy.deepcopy(DETECTOR)
    cfg["backbone"] = dict(type="mmpretrain.ConvNeXt", out_indices=(0, 1, 2, 3))
    cfg["neck"]["in_channels"] = [96, 192, 384, 768]
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(cfg)
    found = settings(optim_wrapper("mmdet", model, 0.5))
    for name, group in found.items():
        layer, layers = model.backbone.get_layer_depth(name, "backbone.")
        assert group["lr"] == LR * 0.5 ** (layers - 1 - layer)


@pytest.mark.parametrize("host", HOSTS)
def test_scoped_name_needs_no_import(host, run_tool):
    code = (
        f"{WITHOUT_OPS}import torch\n"
        "from mmengine.registry import DefaultScope\n"
        f"from {host}.registry import OPTIM_WRAPPER_CONSTRUCTORS\n"
        "assert 'hire_mlp_mm' not in sys.modules\n"
        f"with DefaultScope.overwrite_default_scope('{host}'):\n"
        f"    found = OPTIM_WRAPPER_CONSTRUCTORS.get('hire_mlp_mm.{OURS}')\n"
        "print(found.__name__)\n"
    )
    done = run_tool("-c", code)
    assert done.stdout.split()[-1:] == [OURS], done.stderr


@pytest.mark.parametrize("rate", [None, 0, -0.5, 1.5, "0.9", True, float("nan")])
def test_decay_rate_out_of_range(rate):
    options = {} if rate is None else dict(decay_rate=rate)
    with pytest.raises(ValueError, match=r"decay_rate=.*above 0 and at most 1") as caught:
        optim_wrapper("mmseg", build("mmseg"), None, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "option", [dict(num_layers=12), dict(layer_decay_rate=0.9), dict(norm_decay=0)]
)
def test_an_unknown_option_is_an_error(option):
    with pytest.raises(ValueError, match=f"unknown {next(iter(option))} in paramwise_cfg"):
        optim_wrapper("mmseg", build("mmseg"), 0.9, **option)


def test_no_learning_rate():
    paramwise = dict(decay_rate=0.9)
    cfg = dict(optimizer=dict(type="AdamW"), constructor=OURS, paramwise_cfg=paramwise)
    with pytest.raises(ValueError, match="the optimizer has no lr"):
        build_optim_wrapper(HireMLP(NANO), cfg)


def test_no_backbone_that_knows_its_layers():
    cfg = copy.deepcopy(CLASSIFIER)
    cfg["backbone"] = dict(type="MobileNetV2")
    with DefaultScope.overwrite_default_scope("mmpretrain"), torch.device("meta"):
        classifier = MODELS.build(cfg)
    assert hasattr(classifier, "get_layer_depth")
    for model in classifier, nn.Linear(2, 2):
        with pytest.raises(ValueError, match=f"no part of {type(model).__name__} has") as caught:
            optim_wrapper("mmpretrain", model)
        assert "\n" not in str(caught.value)


# The hosts' own constructors --------------------------------------------------------------------


def test_mmpretrains_constructor_takes_hire_mlp():
    model = build("mmpretrain", frozen_stages=1)
    options = dict(norm_decay_mult=0.0, bias_decay_mult=0.0)
    name = "LearningRateDecayOptimWrapperConstructor"
    wrapper = optim_wrapper("mmpretrain", model, None, name, layer_decay_rate=0.5, **options)
    theirs = wrapper.optimizer.param_groups
    ours = settings(optim_wrapper("mmpretrain", model, 0.5, **options))
    assert {group["param_name"] for group in theirs} == set(ours)
    for group in theirs:
        same = ours[group["param_name"]]
        for key in ("lr", "lr_scale", "layer_id", "weight_decay"):
            assert group[key] == same[key], (group["param_name"], key)


@pytest.mark.parametrize("host", ["mmdet", "mmseg"])
@pytest.mark.parametrize("decay_type", ["layer_wise", "stage_wise"])
def test_the_other_hosts_refuse(host, decay_type):
    """That is why ours exists: the day they accept, it is time to think again."""
    name, options = "LearningRateDecayOptimizerConstructor", dict(decay_type=decay_type)
    with pytest.raises(NotImplementedError):
        optim_wrapper(host, build(host), 0.9, name, num_layers=LAYERS, **options)


@pytest.mark.parametrize("host", ["mmdet", "mmseg"])
def test_mmpretrains_constructor_refuses_the_other_hosts_models(host):
    name = "mmpretrain.LearningRateDecayOptimWrapperConstructor"
    with pytest.raises(NotImplementedError, match="get_layer_depth"):
        optim_wrapper(host, build(host), None, name, layer_decay_rate=0.9)
