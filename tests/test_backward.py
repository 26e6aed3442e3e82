"""Are the gradients those of the plain operations, and is less kept for them?"""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from hire_mlp_mm.backward import circular_slice, conv_of, conv_of_norm
from hire_mlp_mm.bench.meters import kept_bytes
from hire_mlp_mm.bench.reference_net import ReferenceNet
from hire_mlp_mm.hire_mlp import ARCHS, HireMLPNet
from tests.conftest import NANO

SHALLOW = dict(depths=(2,), dims=(8,), region_sizes=(4,), shift_periods=(2,), shift_steps=(2,),
               mlp_ratios=(4,))  # fmt: skip


def gradients(out, *leaves):
    weights = torch.sin(torch.arange(out.numel(), dtype=out.dtype)).view_as(out)
    return torch.autograd.grad((out * weights).sum(), leaves, allow_unused=True)


@settings(max_examples=100, deadline=None)
@given(
    total=st.integers(1, 9),
    ignored=st.integers(0, 3),
    start=st.integers(-20, 20),
    length=st.integers(1, 30),
    axis=st.integers(0, 2),
)
def test_gradient_of_a_circular_slice(total, ignored, start, length, axis):
    size = max(1, total - ignored)
    shape = [2, 3, 2]
    shape[axis] = total
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    places = torch.tensor([(start + i) % size for i in range(length)])
    ours, plain = circular_slice(x, axis, start, length, size), x.index_select(axis, places)
    assert torch.equal(ours, plain)
    torch.testing.assert_close(gradients(ours, x), gradients(plain, x))


@pytest.mark.parametrize("frozen", [(), ("weight",), ("weight", "bias"), ("x",), ("x", "y")])
@pytest.mark.parametrize("bias", [True, False])
def test_conv_of(bias, frozen):
    layer = nn.Conv2d(6, 4, (2, 1), stride=(2, 1), bias=bias).double()
    x = torch.randn(2, 6, 8, 5, dtype=torch.float64)
    y = torch.randn(2, 6, 1, 1, dtype=torch.float64, requires_grad=True)
    leaves = {"x": x, "y": y, **dict(layer.named_parameters())}
    for name, leaf in leaves.items():
        leaf.requires_grad_(name not in frozen)
    wanted = [leaf for leaf in leaves.values() if leaf.requires_grad]

    def scaled(x, y):
        return F.gelu(x * y)

    ours, plain = conv_of(layer, scaled, x, y), layer(scaled(x, y))
    assert torch.equal(ours, plain)
    torch.testing.assert_close(gradients(ours, *wanted), gradients(plain, *wanted))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(6),
        nn.BatchNorm2d(6, affine=False),
        nn.BatchNorm2d(6, track_running_stats=False),
        nn.GroupNorm(2, 6),
    ],
    ids=["BN", "BN without weights", "BN without statistics", "GN"],
)
def test_conv_of_norm(norm, training):
    norm = copy.deepcopy(norm).double().train(training)
    theirs = copy.deepcopy(norm)
    layer = nn.Conv2d(6, 4, 1).double()
    x = torch.randn(2, 6, 8, 5, dtype=torch.float64, requires_grad=True)
    ours, plain = conv_of_norm(layer, norm, x), layer(theirs(x))
    assert torch.equal(ours, plain)
    for a, b in zip(
        gradients(ours, x, layer.weight, layer.bias, *norm.parameters()),
        gradients(plain, x, layer.weight, layer.bias, *theirs.parameters()),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(norm.state_dict(), theirs.state_dict())  # the batch was seen once


def test_a_hooked_layer_is_called():
    """DeepSpeed's third stage, for one, brings a layer's weights before it is called."""
    layer, seen = nn.Conv2d(2, 2, 1), []
    layer.register_forward_pre_hook(lambda *_: seen.append("layer"))
    x = torch.rand(1, 2, 3, 3, requires_grad=True)
    conv_of(layer, F.gelu, x)
    conv_of_norm(layer, nn.BatchNorm2d(2), x)
    assert seen == ["layer"] * 2


@pytest.mark.parametrize("arch", ARCHS)
def test_at_most_three_fifths_of_the_references_bytes_are_kept(arch):
    network = HireMLPNet(arch).train()
    x = torch.rand(1, 3, 128, 128)
    assert kept_bytes(network, x) < 0.6 * kept_bytes(ReferenceNet(network), x)


def test_a_fifth_of_them_with_recomputed_blocks():
    network = HireMLPNet("small", with_cp=True).train()
    x = torch.rand(1, 3, 128, 128)
    assert kept_bytes(network, x) < 0.2 * kept_bytes(ReferenceNet(network), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_under_autocast_are_those_of_the_plain_operations(dtype, monkeypatch):
    network = HireMLPNet(NANO).train()
    x = torch.rand(2, 3, 64, 96)
    found = []
    for recorded in (True, False):
        if not recorded:
            monkeypatch.setattr("hire_mlp_mm.backward.is_recorded", lambda: False)
        network.zero_grad()
        with torch.autocast("cpu", dtype):
            outputs = network(x)
        torch.manual_seed(1)
        sum((out.float() * torch.randn(out.shape)).sum() for out in outputs).backward()
        found.append({name: p.grad.clone() for name, p in network.named_parameters()})
    for name, ours in found[0].items():
        assert ours.dtype == torch.float32
        assert F.cosine_similarity(ours.flatten(), found[1][name].flatten(), 0) > 0.99, name


@pytest.mark.parametrize("training", [False, True])
def test_the_mode_counts_in_which_a_norm_ran(training):
    norm, layer = nn.BatchNorm2d(6).double(), nn.Conv2d(6, 4, 1).double()
    nn.init.uniform_(norm.running_var, 0.5, 2)
    theirs = copy.deepcopy(norm).train(training)
    norm.train(training)
    x = torch.randn(2, 6, 8, 5, dtype=torch.float64, requires_grad=True)
    ours, plain = conv_of_norm(layer, norm, x), layer(theirs(x))
    norm.train(not training)
    torch.testing.assert_close(gradients(ours, x, norm.weight)[0], gradients(plain, x)[0])


def test_a_replica_whose_parameters_are_no_parameters():
    """As DataParallel makes them."""
    norm, layer = nn.BatchNorm2d(6).double(), nn.Conv2d(6, 4, 1).double()
    replica = norm._replicate_for_data_parallel()
    for name, parameter in norm.named_parameters():
        setattr(replica, name, parameter * 1.0)
    x = torch.randn(2, 6, 8, 5, dtype=torch.float64)
    ours = gradients(conv_of_norm(layer, replica, x), norm.weight, norm.bias)
    plain = gradients(layer(norm(x)), norm.weight, norm.bias)
    torch.testing.assert_close(ours, plain)


def test_other_norms_run_once():
    class Counting(nn.BatchNorm2d):
        runs = 0

        def forward(self, x):
            self.runs += 1
            return super().forward(x)

    norm, layer = Counting(6), nn.Conv2d(6, 4, 1)
    conv_of_norm(layer, norm, torch.rand(2, 6, 3, 3, requires_grad=True)).sum().backward()
    assert norm.runs == 1


def test_gradient_of_the_gradient():
    network = HireMLPNet(SHALLOW, out_indices=(0,)).double().train()
    x = torch.randn(1, 3, 28, 36, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(x)

    def second(x):
        (out,) = network(x)
        (first,) = torch.autograd.grad(torch.sin(out).sum(), x, create_graph=True)
        (result,) = torch.autograd.grad((first * direction).sum(), x)
        return result

    ours = second(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hire_mlp_mm.backward.is_recorded", lambda: False)
        torch.testing.assert_close(ours, second(x))


def test_functional_gradients():
    network = HireMLPNet(SHALLOW, out_indices=(0,)).eval()
    x = torch.randn(1, 3, 28, 36)
    ours = torch.func.grad(lambda x: network(x)[0].sum())(x)
    x.requires_grad_()
    torch.testing.assert_close(ours, gradients_of_sum(network, x))


def gradients_of_sum(network, x):
    return torch.autograd.grad(network(x)[0].sum(), x)[0]
