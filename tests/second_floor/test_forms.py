"""Do compiled and channels-last backbones give the plain one's numbers?"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd

from hire_mlp_mm import HireMLP
from hire_mlp_mm.compiling import compile_blocks, compiling
from hire_mlp_mm.engine.forms import backbones, use_channels_last
from hire_mlp_mm.errors import UserError
from hire_mlp_mm.fuse import fuse
from tests.conftest import NANO, SHALLOW, needs_compiler
from tests.ground_floor.test_fuse import largest_error
from tests.ground_floor.test_network import randomised


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
    with pytest.raises(UserError, match="no HireMLP in Sequential; expected a model with one"):
        backbones(nn.Sequential(nn.Conv2d(3, 3, 1)))
