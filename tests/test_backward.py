"""Are the gradients those of the plain operations, and is less kept for them?"""

from __future__ import annotations

import copy

import pytest
import torch
from benchmark import kept_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_net import ReferenceNet
from torch import nn
from torch.nn import functional as F

from hire_mlp_mm.backward import circular_slice, conv_of, conv_of_norm
from hire_mlp_mm.hire_mlp import ARCHS, HireMLPNet


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


@pytest.mark.parametrize("frozen", [(), ("weight",), ("weight", "bias"), ("x",)])
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


@pytest.mark.parametrize("with_cp", [False, True])
def test_gradients_under_autocast_are_close_to_those_without(with_cp):
    network = HireMLPNet("tiny", with_cp=with_cp).train()
    x = torch.rand(2, 3, 64, 96)
    found = {}
    for enabled in (False, True):
        parameters = dict(network.named_parameters())
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            outputs = network(x)
        sum((out.float() ** 2).mean() for out in outputs).backward()
        found[enabled] = {name: p.grad.clone() for name, p in parameters.items()}
        assert all(p.grad.dtype == torch.float32 for p in parameters.values())
    whole = {k: torch.cat([g.flatten() for g in v.values()]) for k, v in found.items()}
    cosine = F.cosine_similarity(whole[False], whole[True], 0)
    assert cosine > 0.99
