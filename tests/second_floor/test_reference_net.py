"""Is the baseline of the benchmarks the network it is compared with?"""

from __future__ import annotations

import pytest
import torch

from hire_mlp_mm.bench.reference_net import ReferenceNet
from hire_mlp_mm.hire_mlp import HireMLPNet
from hire_mlp_mm.ops import REGION_PADDINGS, SHIFT_PADDINGS
from tests.conftest import NANO
from tests.ground_floor.test_network import randomised


@pytest.mark.parametrize("size", [(64, 96), (97, 131), (113, 75)])
@pytest.mark.parametrize("region_padding", REGION_PADDINGS)
@pytest.mark.parametrize("shift_padding", SHIFT_PADDINGS)
def test_equals_the_network(shift_padding, region_padding, size):
    model = randomised(HireMLPNet(NANO, shift_padding=shift_padding, region_padding=region_padding))
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        for ours, theirs in zip(model(x), ReferenceNet(model)(x), strict=True):
            assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max()


def test_a_training_step_gives_the_same_gradients():
    model = randomised(HireMLPNet(NANO)).train()
    x = torch.randn(2, 3, 97, 131, dtype=torch.float64)
    gradients = []
    for network in (model, ReferenceNet(model)):
        model.zero_grad()
        sum((out**2).mean() for out in network(x)).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    floor = max(g.abs().max() for g in gradients[0].values())
    for name, gradient in gradients[0].items():
        assert (gradient - gradients[1][name]).abs().max() <= 1e-12 * floor, name
