"""Do compiled, bfloat16 and channels-last backbones give the plain one's numbers?"""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from hire_mlp_mm import HireMLP
from hire_mlp_mm.engine.backbones import (
    BackboneHook,
    compile_blocks,
    compiling,
    run_in,
    use_channels_last,
)
from hire_mlp_mm.errors import UserError
from hire_mlp_mm.fuse import fuse
from tests.conftest import NANO, needs_compiler
from tests.ground_floor.test_fuse import largest_error
from tests.ground_floor.test_network import randomised

SHALLOW = dict(depths=(2,), dims=(16,), region_sizes=(4,), shift_periods=(2,), shift_steps=(2,),
               mlp_ratios=(4,))  # fmt: skip
SIZES = [(2, 3, 70, 99), (3, 3, 97, 131), (2, 3, 113, 75)]


def gradient(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    sum((out**2).mean() for out in model(x)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.slow
@needs_compiler
@pytest.mark.timeout(600)
@pytest.mark.parametrize("form", ["plain", "fused", "trained"])
def test_compiled_blocks(form):
    plain = randomised(HireMLP(SHALLOW, out_indices=(0,))).float()
    plain.train(form == "trained")
    compiled = fuse(plain) if form == "fused" else copy.deepcopy(plain)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_blocks(compiled)
    # In training torch 2.11 makes a graph for every height: no more to be learnt from a third.
    sizes = SIZES[:2] if form == "trained" else SIZES
    graphs = []
    for size in sizes:
        x = torch.randn(size)
        with compiling(), torch.set_grad_enabled(form == "trained"):
            assert largest_error(compiled(x), plain(x)) < 1e-5
            if form == "trained":
                ours, theirs = gradient(compiled, x), gradient(plain, x)
                assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] == 2  # one for each shift
    assert form == "trained" or graphs[2] == graphs[0]


@needs_compiler
def test_compiled_gradients_add_up_nowhere_by_index():
    """Of that, inductor makes kernels that write past their buffers: see `gather`."""
    names = []

    def look(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        names.extend(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    block = HireMLP(SHALLOW, out_indices=(0,)).stages[0].blocks[1].train()
    looking = aot_autograd(fw_compiler=look, bw_compiler=look)
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=looking)
    x = torch.randn(2, 16, 7, 9, requires_grad=True)
    ours, theirs = (torch.autograd.grad(form(x).square().sum(), x)[0] for form in (compiled, block))
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
    assert "aten.index_select.default" in names  # both passes were seen
    assert "aten.convolution_backward.default" in names
    adding = ("index_add", "index_put", "scatter_add", "scatter_reduce", "index_select_backward")
    assert not [name for name in names if any(word in name for word in adding)]


def test_compiled_blocks_cannot_be_recomputed():
    with pytest.raises(UserError, match="expected with_cp=False"):
        compile_blocks(HireMLP(NANO, with_cp=True))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_close_and_come_out_in_float32(dtype, fused):
    plain = randomised(HireMLP(NANO)).float()
    half = fuse(plain) if fused else copy.deepcopy(plain)
    run_in(half, dtype)
    x = torch.randn(2, 3, 97, 131)
    with torch.no_grad():
        ours, theirs = half(x), plain(x)
    assert all(out.dtype == torch.float32 for out in ours)
    assert 1e-5 < largest_error(ours, theirs) < 0.1


def test_a_model_that_fails_leaves_the_other_type():
    """Else what comes after an image that was refused would be computed in it, too."""
    model = HireMLP(NANO)
    run_in(model, torch.bfloat16)
    with pytest.raises(ValueError, match=r"expected \(N, 3, H, W\)"):
        model(torch.randn(1, 4, 64, 64))
    assert not torch.is_autocast_enabled("cpu")


def test_the_compilers_settings_are_put_back():
    from torch.fx.experimental import _config as symbolic_shapes

    def settings() -> tuple[int, bool]:
        config = torch._dynamo.config
        name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
        return getattr(config, name), symbolic_shapes.use_duck_shape

    before = settings()
    with compiling():
        assert settings() == (64, False) != before
    assert settings() == before


@pytest.mark.parametrize("fused", [False, True])
def test_channels_last(fused):
    plain = randomised(HireMLP(NANO)).float()
    last = fuse(plain) if fused else copy.deepcopy(plain)
    use_channels_last(last)
    x = torch.randn(2, 3, 97, 131)
    with torch.no_grad():
        ours, theirs = last(x), plain(x)
    assert all(out.is_contiguous(memory_format=torch.channels_last) for out in ours)
    assert all(out.is_contiguous() for out in theirs)
    assert largest_error(ours, theirs) < 1e-5


def test_a_model_without_hire_mlp_is_told_so():
    hook = BackboneHook(channels_last=True)
    with pytest.raises(UserError, match="no HireMLP in Sequential; expected a model with one"):
        hook.before_train(SimpleNamespace(model=nn.Sequential(nn.Conv2d(3, 3, 1))))
