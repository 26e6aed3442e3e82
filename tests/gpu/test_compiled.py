"""Do compiled blocks and CUDA graphs give the plain network's numbers, for images of any size?"""

from __future__ import annotations

import copy

import pytest
import torch

from hire_mlp_mm.bench.candidates import Graphed
from hire_mlp_mm.compiling import compile_blocks, compiling
from hire_mlp_mm.fuse import fuse
from hire_mlp_mm.hire_mlp import HireMLPNet
from hire_mlp_mm.lean import LeanBlock
from tests.conftest import SHALLOW, needs_compiler
from tests.gpu.conftest import MOST, error, gradient
from tests.reference import randomised

GRAPHS = 2  # one for each shift
SIZES = [(70, 99), (97, 131), (113, 75), (64, 64), (224, 224), (160, 96), (75, 101), (130, 260)]


def graphs() -> int:
    """How many graphs torch has compiled since it began anew."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.fixture(autouse=True)
def anew():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.slow
@needs_compiler
@pytest.mark.timeout(600)
@pytest.mark.parametrize("form", [copy.deepcopy, fuse])
def test_inference(form, device, tell):
    plain = randomised(HireMLPNet(SHALLOW, out_indices=(0,), block=LeanBlock)).float().to(device)
    compiled = form(plain)
    compile_blocks(compiled)
    for size in SIZES:
        x = torch.randn(2, 3, *size, device=device)
        with compiling(), torch.no_grad():
            assert error(compiled(x)[0], plain(x)[0]) < 1e-5
    tell(f"graphs of {form.__name__} in float32 after eight sizes: {graphs()}, one for each shift")
    assert graphs() == GRAPHS


@pytest.mark.slow
@needs_compiler
@pytest.mark.timeout(600)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", [copy.deepcopy, fuse])
def test_half(form, dtype, device, request):
    if dtype == torch.float16:
        request.getfixturevalue("gpu")  # for a CPU's is slow, and nobody's choice
    arch = dict(SHALLOW, depths=(1,))
    plain = randomised(HireMLPNet(arch, out_indices=(0,), block=LeanBlock)).float().to(device)
    half = form(plain).to(dtype)
    compile_blocks(half)
    x = torch.randn(2, 3, *SIZES[0], device=device)
    with compiling(), torch.no_grad():
        assert error(half(x.to(dtype))[0], plain(x)[0]) < MOST[dtype]


@pytest.mark.slow
@needs_compiler
@pytest.mark.timeout(600)
def test_training(device, tell):
    """Two sizes: torch 2.11 makes a graph for every height, from which a third learns no more."""
    plain = HireMLPNet(SHALLOW, out_indices=(0,), block=LeanBlock).to(device).train()
    compiled = copy.deepcopy(plain)
    compile_blocks(compiled)
    for size in SIZES[:2]:
        x = torch.randn(2, 3, *size, device=device)
        with compiling():
            assert error(compiled(x)[0], plain(x)[0]) < 1e-5
            assert error(gradient(compiled, x), gradient(plain, x)) < 1e-4
    tell(f"graphs in training after two sizes: {graphs()}")
    assert graphs() <= GRAPHS * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("batch", [1, 8])
def test_cuda_graphs(batch, dtype, gpu, arch):
    network = fuse(randomised(HireMLPNet(arch))).to(gpu, dtype)
    graphed = Graphed(network)
    for size in SIZES[:3] * 2:  # recorded, then replayed
        x = torch.randn(batch, 3, *size, device=gpu, dtype=dtype)
        with torch.no_grad():
            pairs = zip(graphed(x), network(x), strict=True)
            assert all(error(ours, theirs) < MOST[dtype] for ours, theirs in pairs)
