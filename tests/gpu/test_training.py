"""Does training in mixed precision, with SyncBN or DDP, come to what plain float32 comes to?"""

from __future__ import annotations

import copy
from datetime import timedelta

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hire_mlp_mm.bench.meters import kept_bytes, peak_bytes
from hire_mlp_mm.bench.reference_net import ReferenceNet
from hire_mlp_mm.hire_mlp import HireMLPNet
from hire_mlp_mm.lean import LeanBlock, RecomputedBlock
from tests.gpu.conftest import error, gradient

BLOCKS = pytest.mark.parametrize("block", [LeanBlock, RecomputedBlock])
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
STEPS = 8


def losses(network: nn.Module, images: torch.Tensor, dtype: torch.dtype | None) -> list[float]:
    """Of some steps towards fixed maps, in float32 or under automatic mixed precision."""
    kind, found = images.device.type, []
    scaler = torch.amp.GradScaler(kind, enabled=dtype == torch.float16)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    targets = [torch.roll(out, 1, 0).detach() for out in network(images)]
    for _ in range(STEPS):
        with torch.autocast(kind, dtype, enabled=dtype is not None):
            outputs = network(images)
        pairs = zip(outputs, targets, strict=True)
        loss = sum((out.float() - target).square().mean() for out, target in pairs)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() == scale:  # or a gradient was too large, and there was no step
            found.append(loss.item())
    return found


@BLOCKS
@HALVES
def test_mixed_precision_learns_as_float32_does(dtype, block, arch, device):
    network = HireMLPNet(arch, block=block).to(device).train()
    images = torch.randn(2, 3, 64, 96, device=device)
    full = losses(copy.deepcopy(network), images, None)
    mixed = losses(network, images, dtype)
    assert full[-1] < 0.95 * full[0]
    assert len(mixed) > STEPS // 2
    assert mixed == pytest.approx(full[: len(mixed)], rel=0.03)


@pytest.fixture
def one_process(device, tmp_path):
    backend = "nccl" if device.type == "cuda" else "gloo"
    where = dict(init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    dist.init_process_group(backend, timeout=timedelta(seconds=60), **where)
    yield
    dist.destroy_process_group()


@BLOCKS
@pytest.mark.parametrize("sync_bn", [False, True])
def test_ddp_takes_the_same_steps(sync_bn, block, arch, device, one_process, request):
    if sync_bn:
        request.getfixturevalue("gpu")  # or torch's SyncBatchNorm refuses the maps
    network = HireMLPNet(arch, block=block).to(device).train()
    other = copy.deepcopy(network)
    if sync_bn:
        other = nn.SyncBatchNorm.convert_sync_batchnorm(other)
    wrapped = DistributedDataParallel(other)
    for _ in range(3):  # DDP complains in the second of what got no gradient in the first
        images = torch.randn(2, 3, 97, 131, device=device)
        assert error(gradient(wrapped, images), gradient(network, images)) < 1e-3
    for ours, theirs in zip(other.buffers(), network.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_what_is_kept_is_at_most_three_fifths_of_the_references(dtype, device, tell):
    network = HireMLPNet("small", block=LeanBlock).to(device).train()
    images = torch.rand(1, 3, 128, 128, device=device)
    kept = []
    for model in (network, ReferenceNet(network)):
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            kept.append(kept_bytes(model, images))
    tell(f"kept, Hire-S, {dtype or 'float32'}: {kept[0] / kept[1]:.2f} of the reference's")
    assert kept[0] < 0.6 * kept[1]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_the_highest_point_of_a_step_is_below_the_references(dtype, gpu, tell):
    network = HireMLPNet("small", block=LeanBlock).to(gpu).train()
    images = torch.rand(4, 3, 512, 512, device=gpu)

    def step(model: nn.Module) -> None:
        with torch.autocast(gpu.type, dtype, enabled=dtype is not None):
            outputs = model(images)
        sum(out.float().square().mean() for out in outputs).backward()

    peaks = []
    for model in (network, ReferenceNet(network)):
        step(model)  # makes the gradients, which stay
        peaks.append(peak_bytes(lambda model=model: step(model), images))
    tell(f"peak, Hire-S, {dtype or 'float32'}: {peaks[0] / peaks[1]:.2f} of the reference's")
    assert peaks[0] < 0.85 * peaks[1]
