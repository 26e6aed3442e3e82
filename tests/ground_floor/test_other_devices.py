"""Does all stay on a device that is no CPU, without a number read back?

A GPU waits where a number is read back, and a CUDA graph cannot be recorded. There need be no GPU:
tensors without numbers tell.
"""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.func import functional_call

from hire_mlp_mm.fuse import fuse
from hire_mlp_mm.hire_mlp import Block, HireMLPNet
from hire_mlp_mm.lean import LeanBlock, RecomputedBlock
from tests.conftest import NANO

SHORT = dict(NANO, depths=(2, 1, 2, 1))


@pytest.mark.parametrize("size", [(97, 131), (5, 3)])
@pytest.mark.parametrize("form", [HireMLPNet.eval, fuse])
def test_inference(form, size):
    network = form(HireMLPNet(SHORT, block=LeanBlock).eval()).half()
    state = network.state_dict()
    with FakeTensorMode(), torch.no_grad():
        there = dict(device="cuda")
        state = {k: torch.empty(v.shape, dtype=v.dtype, **there) for k, v in state.items()}
        image = torch.rand(2, 3, *size, dtype=torch.float16, **there)
        outputs = functional_call(network, state, (image,))
        assert {(out.device.type, out.dtype) for out in outputs} == {("cuda", torch.float16)}


@pytest.mark.parametrize("block", [Block, LeanBlock, RecomputedBlock])
@pytest.mark.parametrize("padding", ["circular", "zero"])
def test_training(padding, block):
    with torch.device("meta"):
        paddings = dict(shift_padding=padding, region_padding=padding)
        network = HireMLPNet(SHORT, block=block, drop_path_rate=0.3, **paddings).train()
        outputs = network(torch.rand(2, 3, 97, 131))
        torch.stack([out.sum() for out in outputs]).sum().backward()
        assert {parameter.grad.device.type for parameter in network.parameters()} == {"meta"}
