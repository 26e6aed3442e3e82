"""Do torch's tracers take the plain network as it is?"""

from __future__ import annotations

import copy

import pytest
import torch

from hire_mlp_mm import HireMLP
from hire_mlp_mm.hire_mlp import HireMLPNet
from tests.conftest import needs_compiler
from tests.ground_floor.test_network import randomised

SMALL = dict(
    depths=(1, 2), dims=(8, 12), region_sizes=(4, 3), shift_periods=(2, 2), shift_steps=(2, 1),
    mlp_ratios=(4, 4),
)  # fmt: skip
# A size at which a map has one token is another graph for torch.export; `hire-mlp export` has both.
SIZES = [(2, 3, 64, 96), (3, 3, 97, 131), (4, 3, 230, 75)]
PADDINGS = [("circular", "circular"), ("zero", "replicate"), ("zero", "zero")]
KINDS = pytest.mark.parametrize("kind", [HireMLPNet, HireMLP])


def network(kind=HireMLPNet, paddings=PADDINGS[0]):
    options = dict(shift_padding=paddings[0], region_padding=paddings[1])
    return randomised(kind(SMALL, out_indices=(0, 1), **options)).float()


def assert_same(traced, plain, sizes=SIZES):
    for size in sizes:
        x = torch.randn(size)
        with torch.no_grad():
            for ours, theirs in zip(traced(x), plain(x), strict=True):
                torch.testing.assert_close(ours, theirs)


@needs_compiler
@pytest.mark.timeout(600)
@KINDS
@pytest.mark.parametrize("paddings", PADDINGS)
def test_export_with_free_height_and_width(paddings, kind):
    plain = network(kind, paddings)
    free = torch.export.Dim.DYNAMIC
    shapes = ({0: free, 2: free, 3: free},)
    program = torch.export.export(plain, (torch.rand(2, 3, 97, 131),), dynamic_shapes=shapes)
    assert_same(program.module(), plain)


@KINDS
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("paddings", PADDINGS)
def test_fx(paddings, training, kind):
    plain = network(kind, paddings).train(training)
    traced = torch.fx.symbolic_trace(plain)
    leaves = {node.target.__name__ for node in traced.graph.nodes if node.op == "call_function"}
    assert {"shift", "unshift", "regions_to_tokens"} <= leaves
    assert_same(traced, copy.deepcopy(plain))


@KINDS
def test_jit_trace_at_one_size(kind):
    plain = network(kind)
    with torch.no_grad():
        traced = torch.jit.trace(plain, torch.randn(SIZES[0]))
    assert_same(traced, plain, SIZES[:1])
