"""Is the inference form exact, does it leave the model alone, does it refuse what it cannot do?"""

from __future__ import annotations

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from hire_mlp_mm import HireMLP
from hire_mlp_mm.arch import ARCHS
from hire_mlp_mm.fuse import FusedBlock, FusedHireMLP, fuse
from hire_mlp_mm.hire_mlp import HireMLPNet
from hire_mlp_mm.lean import LeanBlock
from tests.conftest import NANO, ROOT, needs_compiler
from tests.ground_floor.test_golden import build
from tests.ground_floor.test_network import randomised
from tests.reference import check_maps, golden_input, load, of_kind

TINY_SIZES = [(1, 1), (1, 40), (2, 2), (3, 3), (16, 16), (17, 33), (33, 47), (64, 1)]
DETECTION = "configs/cascade_mask_rcnn_hire_nano_shapes.py"
SEGMENTATION = "configs/upernet_hire_nano_shapes.py"


def largest_error(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    """Largest difference over the largest value, the worst of the outputs."""
    assert [out.shape for out in ours] == [out.shape for out in theirs]
    pairs = zip(ours, theirs, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def error_of_fusing(model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return largest_error(fuse(model)(x), model(x))


@pytest.mark.parametrize("size", [*TINY_SIZES, (64, 96), (97, 131), (224, 224), (9, 400)])
@pytest.mark.parametrize("region_padding", ["circular", "replicate"])
def test_float64(region_padding, size):
    model = randomised(HireMLPNet(NANO, region_padding=region_padding))
    assert error_of_fusing(model, torch.randn(2, 3, *size, dtype=torch.float64)) < 1e-12


@pytest.mark.parametrize("arch", ARCHS)
def test_archs_in_both_precisions(arch):
    """Large enough that the first stages fold `proj` into the branches and the last does not."""
    model = randomised(HireMLPNet(arch))
    x = torch.randn(1, 3, 97, 131, dtype=torch.float64)
    assert error_of_fusing(model, x) < 1e-12
    assert error_of_fusing(model.float(), x.float()) < 1e-5


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 23),
    width=st.integers(1, 23),
    region=st.integers(1, 5),
    shift=st.integers(0, 7),
    region_padding=st.sampled_from(["circular", "replicate"]),
    folds=st.booleans(),
)
def test_both_forms_of_a_block(height, width, region, shift, region_padding, folds):
    arch = dict(
        depths=(2,), dims=(8,), region_sizes=(region,), shift_periods=(2,), shift_steps=(shift,),
        mlp_ratios=(2.5,),
    )  # fmt: skip
    model = randomised(HireMLPNet(arch, out_indices=(0,), region_padding=region_padding))
    block = model.stages[0].blocks[1]
    fused = FusedBlock(block)
    fused.folds_proj = lambda tokens: folds
    x = torch.randn(2, 8, height, width, dtype=torch.float64)
    with torch.no_grad():
        expected = block(x)
        ours = fused(x)
    assert (ours - expected).abs().max() < 1e-12 * expected.abs().max()


@pytest.mark.parametrize("path", of_kind("features"))
def test_golden_numbers(path):
    archive, meta = load(path)
    with torch.no_grad():
        outputs = fuse(build(meta))(golden_input(meta))
    check_maps(outputs, archive, 1e-5)


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(output_norm=False),
        dict(out_indices=(1, 2)),
        dict(in_channels=1),
        dict(norm_layer=nn.SyncBatchNorm),
        dict(norm_layer=lambda dim: nn.BatchNorm2d(dim, eps=0.1, affine=False)),
        dict(drop_path_rate=0.3, block=LeanBlock),
    ],
)
def test_options_of_the_network(kwargs):
    model = HireMLPNet(NANO, **kwargs).double().eval()
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(norm.running_mean, -1, 1)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    fused = fuse(model)
    x = torch.randn(2, kwargs.get("in_channels", 3), 45, 70, dtype=torch.float64)
    assert error_of_fusing(model, x) < 1e-12
    for name in ("out_indices", "out_channels", "strides", "arch"):
        assert getattr(fused, name) == getattr(model, name)


def test_the_model_is_left_alone():
    model = randomised(HireMLP(NANO, with_cp=True)).train()
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    fused = fuse(model)
    x = torch.randn(2, 3, 45, 70, dtype=torch.float64)
    image = x.clone()
    outputs = fused(x)
    assert torch.equal(x, image)
    assert [m.training for m in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for tensor in fused.state_dict().values():  # nothing is shared
        tensor.zero_()
    with torch.no_grad():
        assert largest_error(outputs, model.eval()(x)) < 1e-12


def test_evaluation_only_and_no_norm_left():
    fused = fuse(HireMLP(NANO).train())
    assert isinstance(fused, FusedHireMLP)
    assert fused.train() is fused
    assert not any(m.training for m in fused.modules())
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in fused.modules())
    assert not any(p.requires_grad for p in fused.parameters())
    assert not fused(torch.rand(1, 3, 32, 32))[0].requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_types(dtype):
    """As near to the truth as the network itself in that type; outputs in the image's type."""
    model = randomised(HireMLPNet(NANO))
    x = torch.randn(2, 3, 97, 131)
    with torch.no_grad():
        truth = model(x.double())
        fused = fuse(model).to(dtype)
        outputs = fused(x)
        assert {out.dtype for out in outputs} == {torch.float32}
        assert {out.dtype for out in fused(x.to(dtype))} == {dtype}
        plain = model.to(dtype)(x.to(dtype))
    assert largest_error(outputs, truth) < max(1.5 * largest_error(plain, truth), 0.02)


def under_autocast(model: nn.Module, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
    with torch.no_grad(), torch.autocast("cpu", dtype):
        return model(x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_followed(dtype):
    """As near to the truth as the network under autocast, in its types; float32 outside, again."""
    model = randomised(HireMLPNet(NANO))
    x = torch.randn(2, 3, 97, 131)
    with torch.no_grad():
        truth = model(x.double())
        fused = fuse(model.float())
        before, keys = fused(x), fused.state_dict().keys()
        plain, outputs = (under_autocast(one, x, dtype) for one in (model, fused))
        assert all(map(torch.equal, fused(x), before))
    assert [out.dtype for out in outputs] == [out.dtype for out in plain] == [dtype] * 4
    assert 1e-5 < largest_error(outputs, truth) < max(1.5 * largest_error(plain, truth), 0.02)
    assert all(map(torch.equal, outputs, under_autocast(fused.to(dtype), x, dtype)))
    assert fused.state_dict().keys() == keys


def test_weights_that_are_loaded_are_those_under_autocast():
    fused, other = (fuse(randomised(HireMLPNet(NANO)).float()) for _ in range(2))
    x = torch.randn(1, 3, 45, 70)
    before = under_autocast(fused, x, torch.bfloat16)
    state = {f"backbone.{name}": value for name, value in other.state_dict().items()}
    nn.ModuleDict(dict(backbone=fused)).load_state_dict(state)
    outputs = under_autocast(fused, x, torch.bfloat16)
    assert all(map(torch.equal, outputs, under_autocast(other, x, torch.bfloat16)))
    assert not torch.equal(outputs[0], before[0])


def test_weights_are_cast_once():
    fused = fuse(HireMLPNet(NANO))
    half = fused.in_type(torch.bfloat16)
    under_autocast(fused, torch.randn(1, 3, 45, 70), torch.bfloat16)
    assert fused.in_type(torch.bfloat16) is half
    assert fused.in_type(torch.float32) is fused
    assert fused.to("meta").in_type(torch.bfloat16).stem.proj.weight.is_meta


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_outputs_have_the_layout_of_the_image(layout):
    fused = fuse(HireMLPNet(NANO))
    x = torch.rand(2, 3, 97, 131).contiguous(memory_format=layout)
    assert all(out.is_contiguous(memory_format=layout) for out in fused(x))


def test_copied_saved_and_loaded():
    fused = fuse(randomised(HireMLPNet(NANO)).float())
    x = torch.randn(1, 3, 45, 70)
    file = io.BytesIO()
    torch.save(fused, file)
    size = file.tell()
    under_autocast(fused, x, torch.bfloat16)
    torch.save(fused, file)
    assert file.tell() < 2.1 * size  # without the copy in the other type
    file.seek(0)
    other = fuse(randomised(HireMLPNet(NANO)).float())
    other.load_state_dict(fused.state_dict())
    expected = fused(x)
    for one in (copy.deepcopy(fused), torch.load(file, weights_only=False), other):
        assert all(map(torch.equal, one(x), expected))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (HireMLPNet(NANO, shift_padding="zero"), "token_mixer.height has shift_padding='zero'"),
        (HireMLPNet(NANO, region_padding="zero"), "token_mixer.height has region_padding='zero'"),
        (HireMLP(NANO, norm_cfg=dict(type="GN", num_groups=2)), "stem.norm is GroupNorm"),
        (HireMLP(NANO, norm_cfg=dict(type="mmpretrain.LN2d")), "stem.norm is LayerNorm2d"),
        (
            HireMLPNet(NANO, norm_layer=lambda d: nn.BatchNorm2d(d, track_running_stats=False)),
            "stem.norm is BatchNorm2d; only BatchNorm with running statistics",
        ),
        (nn.Sequential(nn.Linear(1, 1)), "no HireMLP in Sequential"),
    ],
)
def test_refusals_are_one_line(model, message):
    with pytest.raises(ValueError, match=r"^fuse: ") as error:
        fuse(model)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_norm_that_was_taken_out_is_named():
    model = HireMLPNet(NANO)
    model.stages[1].blocks[0].norm2 = nn.Identity()
    with pytest.raises(ValueError, match=r"^fuse: stages.1.blocks.0.norm2 is Identity"):
        fuse(model)


def test_a_backbone_may_have_any_name():
    fused = fuse(nn.ModuleDict(dict(normal=HireMLPNet(NANO), norm=HireMLPNet(NANO))))
    assert isinstance(fused["norm"], FusedHireMLP)


def test_two_backbones_and_one_twice():
    model = nn.ModuleDict(dict(a=HireMLPNet(NANO), b=HireMLPNet(NANO), other=nn.BatchNorm2d(3)))
    model["c"] = model["a"]
    fused = fuse(model)
    assert isinstance(fused["a"], FusedHireMLP)
    assert isinstance(fused["b"], FusedHireMLP)
    assert fused["c"] is fused["a"] is not fused["b"]
    assert isinstance(fused["other"], nn.BatchNorm2d)
    assert fused["other"] is not model["other"]
    assert isinstance(model["a"], HireMLPNet)


@pytest.mark.parametrize("config", [DETECTION, SEGMENTATION])
def test_whole_model(config):
    cfg = Config.fromfile(ROOT / config)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.backbone.init_weights()
    randomised(model.backbone).float()
    model.train()
    fused = fuse(model)
    assert type(fused) is type(model)
    assert isinstance(fused.backbone, FusedHireMLP)
    assert isinstance(model.backbone, HireMLP)
    assert model.training
    assert not any(m.training for m in fused.modules())
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        model.eval()
        assert largest_error(fused.extract_feat(x), model.extract_feat(x)) < 1e-5


SMALL = dict(
    depths=(1, 2), dims=(8, 12), region_sizes=(4, 3), shift_periods=(2, 2), shift_steps=(2, 1),
    mlp_ratios=(4, 4),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("region_padding", ["circular", "replicate"])
def test_exported_once_for_all_sizes(region_padding):
    network = HireMLPNet(SMALL, out_indices=(0, 1), region_padding=region_padding)
    fused = fuse(randomised(network).float())
    auto = torch.export.Dim.AUTO
    shapes = ({0: auto, 2: auto, 3: auto},)
    exported = torch.export.export(fused, (torch.rand(2, 3, 97, 131),), dynamic_shapes=shapes)
    for size in [(2, 3, 64, 96), (3, 3, 97, 131), (4, 3, 113, 75)]:
        x = torch.randn(size)
        assert largest_error(exported.module()(x), fused(x)) < 1e-5


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_once_for_all_sizes():
    """One graph, without a branch on the size; what a compiler makes of it is its affair."""
    fused = fuse(randomised(HireMLPNet(SMALL, out_indices=(0, 1))).float())
    compiled = torch.compile(fused, fullgraph=True, dynamic=True, backend="aot_eager")
    sizes = [(2, 3, 97, 131), (2, 3, 64, 96), (3, 3, 113, 75)]
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for size in sizes:
            x = torch.randn(size)
            assert largest_error(compiled(x), fused(x)) < 1e-5
