"""Are a device's numbers the reference's, and those of half precision near to them?"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hire_mlp_mm.fuse import fuse
from hire_mlp_mm.hire_mlp import Block, HireMLPNet
from hire_mlp_mm.lean import LeanBlock, RecomputedBlock
from tests.gpu.conftest import MOST, error
from tests.reference import (
    check_maps,
    check_training_step,
    golden_input,
    golden_network,
    load,
    of_kind,
    randomised,
)


def channels_last(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("path", of_kind("features"))
@pytest.mark.parametrize("form", [copy.copy, channels_last, fuse])
def test_golden_maps(form, path, device):
    archive, meta = load(path)
    network = form(golden_network(meta, HireMLPNet, block=LeanBlock).eval()).to(device)
    with torch.no_grad():
        check_maps(network(golden_input(meta).to(device)), archive, 1e-5)


@pytest.mark.parametrize("path", of_kind("train"))
@pytest.mark.parametrize("block", [Block, LeanBlock, RecomputedBlock])
def test_golden_training_step(block, path, device):
    archive, meta = load(path)
    network = golden_network(meta, HireMLPNet, block=block).to(device).train()
    check_training_step(network, golden_input(meta).to(device), archive, meta)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("form", [copy.deepcopy, channels_last, fuse])
@pytest.mark.parametrize("batch", [1, 8])
def test_half_is_near_to_float32(batch, form, autocast, dtype, arch, device):
    network = randomised(HireMLPNet(arch, block=LeanBlock)).float().to(device)
    images = torch.randn(batch, 3, 97, 131, device=device)
    half = form(network)
    with torch.no_grad():
        expected = network(images)
        if not autocast:
            half, images = half.to(dtype), images.to(dtype)
        with torch.autocast(device.type, dtype, enabled=autocast):
            outputs = half(images)
    for ours, theirs in zip(outputs, expected, strict=True):
        assert 1e-6 < error(ours, theirs) < MOST[dtype]
