"""Do the blocks that keep less for the backward pass give the plain ones' numbers?"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hire_mlp_mm.arch import ARCHS
from hire_mlp_mm.bench.meters import kept_bytes
from hire_mlp_mm.bench.reference_net import ReferenceNet
from hire_mlp_mm.hire_mlp import Block, HireMLPNet
from hire_mlp_mm.lean import LeanBlock, RecomputedBlock
from hire_mlp_mm.ops import REGION_PADDINGS, SHIFT_PADDINGS
from tests.conftest import NANO

DIM = 8
NORMS = {
    "BN": nn.BatchNorm2d,
    "BN without weights": lambda dim: nn.BatchNorm2d(dim, affine=False),
    "BN without statistics": lambda dim: nn.BatchNorm2d(dim, track_running_stats=False),
    "GN": lambda dim: nn.GroupNorm(2, dim),
}
BLOCKS = pytest.mark.parametrize("kind", [LeanBlock, RecomputedBlock])


def two_blocks(kind, norm=nn.BatchNorm2d, drop_path=0.0, paddings=("circular", "circular")):
    """A block of a kind, and a plain one with the same weights and statistics, in float64."""
    how = dict(region_size=3, shift=2, shift_padding=paddings[0], region_padding=paddings[1])
    ours, plain = (cls(DIM, 4, drop_path, norm, **how).double() for cls in (kind, Block))
    for value in ours.state_dict().values():
        if value.is_floating_point():
            nn.init.uniform_(value, 0.5, 1.5)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def image(*size, **kwargs):
    x = torch.randn(2, DIM, *size or (7, 8), dtype=torch.float64, **kwargs)
    return x.contiguous(memory_format=torch.channels_last)


def gradients(block, x):
    """Of the block's output, times something, for the image and all parameters."""
    leaves = [p for p in (x, *block.parameters()) if p.requires_grad]
    torch.manual_seed(1)
    out = block(x)
    weights = torch.sin(torch.arange(out.numel(), dtype=out.dtype)).view_as(out)
    return out, torch.autograd.grad((out * weights).sum(), leaves)


def assert_equal(ours, plain, x):
    for mine, theirs in zip(gradients(ours, x), gradients(plain, x), strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(ours.state_dict(), plain.state_dict())  # a batch is seen once


@BLOCKS
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_numbers(norm, training, kind):
    ours, plain = two_blocks(kind, NORMS[norm], drop_path=0.5)
    x = image().requires_grad_()
    assert_equal(ours.train(training), plain.train(training), x)


@BLOCKS
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 2), (4, 3)])
@pytest.mark.parametrize("region_padding", REGION_PADDINGS)
@pytest.mark.parametrize("shift_padding", SHIFT_PADDINGS)
def test_paddings_and_small_maps(shift_padding, region_padding, size, kind):
    ours, plain = two_blocks(kind, paddings=(shift_padding, region_padding))
    assert_equal(ours, plain, image(*size).requires_grad_())


@BLOCKS
@pytest.mark.parametrize("frozen", ["", "weight", "norm", "token_mixer", "mlp", "bias"])
@pytest.mark.parametrize("image_too", [False, True])
def test_frozen_parameters(image_too, frozen, kind):
    ours, plain = two_blocks(kind)
    for block in (ours, plain):
        for name, parameter in block.named_parameters():
            parameter.requires_grad_(not frozen or frozen not in name)
    assert_equal(ours, plain, image().requires_grad_(image_too))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_nothing_is_recorded_in_inference(memory_format):
    ours, plain = two_blocks(LeanBlock)
    x = image().contiguous(memory_format=memory_format)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), plain.eval()(x))
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), plain(x))


@pytest.mark.parametrize("layer", ["token_mixer.height.reduce", "mlp.fc1", "mlp", "token_mixer"])
def test_a_hooked_layer_is_called(layer):
    """DeepSpeed's third stage, for one, brings a layer's weights before it is called."""
    block, seen = two_blocks(LeanBlock)[0], []
    block.get_submodule(layer).register_forward_pre_hook(lambda *_: seen.append(layer))
    block(image())
    with torch.no_grad():
        block(image())
    assert seen == [layer] * 2


def test_a_forward_of_its_own_is_called():
    """As accelerate sets one, to bring a layer's weights."""
    block, seen = two_blocks(LeanBlock)[0], []
    layer = block.mlp.fc2
    layer.forward = lambda x: seen.append("fc2") or type(layer).forward(layer, x)
    block(image())
    assert seen == ["fc2"]


def test_a_whole_part_of_another_kind_is_called():
    block = two_blocks(LeanBlock)[0].eval()
    block.token_mixer, block.mlp = nn.Identity(), nn.Identity()
    x = image()
    mixed = x + block.norm1(x)
    torch.testing.assert_close(block(x), mixed + block.norm2(mixed))


def test_a_layer_of_another_kind_is_called():
    class Doubled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    ours, plain = two_blocks(LeanBlock)
    for block in (ours, plain):
        other = Doubled(DIM, 4 * DIM, 1).double()
        other.load_state_dict(block.mlp.fc1.state_dict())
        block.mlp.fc1 = other
        block.mlp.act = nn.GELU(approximate="tanh")
    assert_equal(ours, plain, image().requires_grad_())


def test_other_norms_run_once():
    class Counting(nn.BatchNorm2d):
        runs = 0

        def forward(self, x):
            self.runs += 1
            return super().forward(x)

    block, _ = two_blocks(LeanBlock, Counting)
    block(image().requires_grad_()).sum().backward()
    assert block.norm1.runs == block.norm2.runs == 1


@pytest.mark.parametrize("arch", ARCHS)
def test_at_most_three_fifths_of_the_references_bytes_are_kept(arch):
    network = HireMLPNet(arch, block=LeanBlock).train()
    x = torch.rand(1, 3, 128, 128)
    assert kept_bytes(network, x) < 0.6 * kept_bytes(ReferenceNet(network), x)


def test_a_fifth_of_them_with_recomputed_blocks():
    network = HireMLPNet("small", block=RecomputedBlock).train()
    x = torch.rand(1, 3, 128, 128)
    assert kept_bytes(network, x) < 0.2 * kept_bytes(ReferenceNet(network), x)


@BLOCKS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, kind):
    plain, ours = HireMLPNet(NANO), HireMLPNet(NANO, block=kind)
    ours.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 64, 96)
    for network in (ours, plain):
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype):
            outputs = network(x)
        sum((out.float() * torch.randn(out.shape)).sum() for out in outputs).backward()
    grads = [[p.grad for p in network.parameters()] for network in (ours, plain)]
    assert {grad.dtype for grad in grads[0]} == {torch.float32}
    flat = [torch.cat([grad.flatten() for grad in each]) for each in grads]
    assert F.cosine_similarity(*flat, 0) > 0.999


@pytest.mark.parametrize("training", [False, True])
def test_the_mode_counts_in_which_a_norm_ran(training):
    ours, plain = (block.train(training) for block in two_blocks(LeanBlock))
    x = image().requires_grad_()
    found = []
    for block in (ours, plain):
        out = block(x)
        block.train(not training)
        found.append(torch.autograd.grad(out.square().sum(), x)[0])
    torch.testing.assert_close(*found)


def test_a_replica_whose_parameters_are_no_parameters():
    """As DataParallel makes them."""
    ours, plain = two_blocks(LeanBlock)
    modules = {name: m._replicate_for_data_parallel() for name, m in ours.named_modules()}
    for name, module in modules.items():
        for child in ours.get_submodule(name)._modules:
            module._modules[child] = modules[f"{name}.{child}".lstrip(".")]
        for key, parameter in ours.get_submodule(name)._parameters.items():
            setattr(module, key, parameter if parameter is None else parameter * 1.0)
    replica = modules[""]
    x = image()
    loss = [block(x).square().sum() for block in (replica, plain)]
    torch.testing.assert_close(
        *(
            torch.autograd.grad(one, [*block.parameters()])
            for one, block in zip(loss, (ours, plain), strict=True)
        )
    )


def test_gradient_of_the_gradient():
    found = []
    for block in two_blocks(LeanBlock):
        torch.manual_seed(0)
        x = image().requires_grad_()
        (first,) = torch.autograd.grad(torch.sin(block(x)).sum(), x, create_graph=True)
        found += torch.autograd.grad((first * torch.randn_like(x)).sum(), x)
    torch.testing.assert_close(*found)


def test_gradient_of_the_gradient_under_autocast():
    block, _ = two_blocks(LeanBlock)
    x = image().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = block.float()(x)
    (first,) = torch.autograd.grad(out.float().sum(), x, create_graph=True)
    assert torch.autograd.grad(first.square().sum(), x)[0].isfinite().all()


@BLOCKS
def test_gradients_taken_twice(kind):
    ours, plain = two_blocks(kind)
    x = image().requires_grad_()
    loss = [block(x).square().sum() for block in (ours, plain)]
    for retain_graph in (True, False):
        grads = [torch.autograd.grad(one, x, retain_graph=retain_graph)[0] for one in loss]
        torch.testing.assert_close(*grads)
    torch.testing.assert_close(ours.state_dict(), plain.state_dict())


@pytest.mark.parametrize("kind", [Block, LeanBlock])
def test_functional_gradients(kind):
    block = two_blocks(kind)[0].eval()
    x = image().requires_grad_()
    ours = torch.func.grad(lambda x: block(x).sum())(x.detach())
    torch.testing.assert_close(ours, torch.autograd.grad(block(x).sum(), x)[0])


@pytest.mark.parametrize("batch", [1, 3])
def test_a_large_hidden_map_goes_through_in_parts_in_inference(batch, monkeypatch):
    plain = HireMLPNet(NANO).eval()
    lean = HireMLPNet(NANO, block=LeanBlock).eval()
    lean.load_state_dict(plain.state_dict())
    x, calls = torch.rand(batch, 3, 90, 70), []
    monkeypatch.setattr("hire_mlp_mm.lean.HIDDEN_BYTES", 2000)
    with torch.no_grad():
        expected = plain(x)
        lean.stages[0].blocks[0].norm2.register_forward_hook(lambda *_: calls.append("norm"))
        conv2d = F.conv2d
        seen = []
        monkeypatch.setattr(F, "conv2d", lambda x, *_: seen.append(x.shape) or conv2d(x, *_))
        outputs = lean(x)
    hidden = [shape for shape in seen if shape[1] == 4 * NANO["dims"][0]]
    assert max(shape[0] * shape[2] * shape[3] for shape in hidden) < batch * 23 * 18 / 2
    for ours, theirs in zip(outputs, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert ours.stride() == theirs.stride()
