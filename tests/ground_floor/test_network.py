"""Is the network the paper's, at any size, in every mode?"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hire_mlp_mm.arch import ARCHS, Arch
from hire_mlp_mm.hire_mlp import HEIGHT, WIDTH, Block, DropPath, HireMLPNet, RegionBranch
from hire_mlp_mm.ops import REGION_PADDINGS, SHIFT_PADDINGS
from tests.conftest import NANO
from tests.reference import naive_branch, randomised

# arch: shift of each block, exact parameters with head and dense, MACs at 224 (PAPER's tables)
TABLE = {
    "tiny": ("02 02 0120 01", 18_041_672, 17_529_696, 2.144),
    "small": ("020 0202 0120120120 010", 33_113_848, 32_601_872, 4.231),
    "base": ("0202 020202 012012012012012012012012 010", 58_226_856, 57_714_880, 8.111),
    "large": ("0202 020202 012012012012012012012012 010", 95_723_944, 94_956_288, 13.422),
}


def on_meta(arch: str, **kwargs) -> HireMLPNet:
    """A network without memory, for counting."""
    with torch.device("meta"):
        return HireMLPNet(arch, **kwargs).eval()


@pytest.mark.parametrize("arch", ARCHS)
def test_parameters(arch):
    _, classifier, dense, _ = TABLE[arch]
    assert sum(p.numel() for p in on_meta(arch).parameters()) == dense
    single = on_meta(arch, out_indices=(3,))
    head = ARCHS[arch].dims[-1] * 1000 + 1000
    assert sum(p.numel() for p in single.parameters()) + head == classifier


@pytest.mark.parametrize("arch", ARCHS)
def test_macs_at_224(arch):
    model = on_meta(arch)
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 224, 224, device="meta"))
    head = ARCHS[arch].dims[-1] * 1000
    assert (counter.get_total_flops() / 2 + head) / 1e9 == pytest.approx(TABLE[arch][3], abs=5e-4)


@pytest.mark.parametrize("arch", ARCHS)
def test_shifts(arch):
    blocks = [[b.token_mixer.height.shift for b in s.blocks] for s in on_meta(arch).stages]
    assert " ".join("".join(map(str, shifts)) for shifts in blocks) == TABLE[arch][0]


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_drop_path_grows_linearly(rate):
    model = HireMLPNet(NANO, drop_path_rate=rate)
    rates = [m.rate for m in model.modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx(np.linspace(0, rate, 9))


def test_drop_path_keeps_the_mean_and_drops_whole_images():
    drop = DropPath(0.25).train()
    out = drop(torch.ones(4000, 2, 1, 1))
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert torch.equal(out[:, 0], out[:, 1])
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop.eval()(out), out)


def test_initialisation():
    model = HireMLPNet("tiny")
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            if module.weight.numel() > 10_000:
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    assert model.stages[0].blocks[0].token_mixer.height.reduce.bias is None


@settings(max_examples=150, deadline=None)
@given(
    size=st.integers(1, 11),
    other=st.integers(1, 3),
    region=st.integers(1, 5),
    shift=st.integers(0, 4),
    axis=st.sampled_from([HEIGHT, WIDTH]),
    shift_padding=st.sampled_from(SHIFT_PADDINGS),
    region_padding=st.sampled_from(REGION_PADDINGS),
)
def test_branch_equals_the_definition(
    size, other, region, shift, axis, shift_padding, region_padding
):
    branch = RegionBranch(4, axis, nn.BatchNorm2d, region, shift, shift_padding, region_padding)
    nn.init.normal_(branch.reduce.weight)
    nn.init.normal_(branch.expand.weight)
    randomised(branch)
    shape = (2, 4, size, other) if axis == HEIGHT else (2, 4, other, size)
    x = torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        ours = branch(x).movedim(axis, -1).numpy()
    rows = x.movedim(axis, -1).numpy()
    for image in range(2):
        for i in range(other):
            naive = naive_branch(rows[image, :, i], branch, shift_padding, region_padding)
            np.testing.assert_allclose(ours[image, :, i], naive, atol=1e-12)


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 40), (2, 2), (3, 3), (16, 16), (17, 33), (33, 47), (64, 1)]
)
@pytest.mark.parametrize("paddings", [("circular", "circular"), ("zero", "replicate")])
def test_any_size_from_one_pixel(size, paddings):
    model = HireMLPNet(NANO, shift_padding=paddings[0], region_padding=paddings[1]).eval()
    x = torch.rand(2, 3, *size, requires_grad=True)
    outputs = model(x)
    expected = [tuple(max(1, (n + 1) // 4) for n in size)]
    while len(expected) < 4:
        expected.append(tuple((n + 1) // 2 for n in expected[-1]))
    assert [tuple(out.shape[2:]) for out in outputs] == expected
    sum(out.sum() for out in outputs).backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_layouts_and_types(layout, dtype):
    model = randomised(HireMLPNet(NANO))
    x = torch.rand(2, 3, 45, 70)
    with torch.no_grad():
        expected = model(x.double())
        model.to(dtype=dtype, memory_format=layout)
        outputs = model(x.to(dtype=dtype, memory_format=layout))
    tolerance = 1e-12 if dtype == torch.float64 else 0.1
    for ours, theirs in zip(outputs, expected, strict=True):
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def test_gate_weights_sum_to_one():
    """Three equal branches leave the gate without a say."""
    block = Block(
        8, 4, 0, nn.BatchNorm2d, region_size=2, shift=1, shift_padding="circular",
        region_padding="circular",
    )  # fmt: skip
    mixer = randomised(block).token_mixer
    nn.init.zeros_(mixer.channel.weight)
    mixer.channel.bias.data.uniform_()
    for branch in (mixer.height, mixer.width):
        nn.init.zeros_(branch.expand.weight)
        branch.expand.bias.data = mixer.channel.bias.data.repeat_interleave(2)
    x = torch.rand(1, 8, 4, 4, dtype=torch.float64)
    expected = mixer.proj(mixer.channel(x))
    assert (mixer(x) - expected).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(arch="huge"), "unknown arch 'huge'; expected one of tiny, small, base, large"),
        (dict(arch=dict(depths=(1,))), "needs depths and dims"),
        (dict(arch=dict(NANO, width=3)), "takes depths, dims"),
        (dict(arch=dict(NANO, depths=(1, 2))), "2 depths and 4 dims"),
        (dict(arch=dict(NANO, region_sizes=(0, 1, 1, 1))), "region_sizes"),
        (dict(arch=dict(NANO, dims=(2, 8, 8, 8))), "dims=(2, 8, 8, 8); expected integers from 4"),
        (dict(arch=dict(NANO, mlp_ratios=(0, 4, 4, 4))), "mlp_ratios"),
        (dict(out_indices=(0, 4)), "out_indices"),
        (dict(out_indices=(2, 1)), "ascending"),
        (dict(out_indices=()), "out_indices"),
        (dict(shift_padding="replicate"), "expected one of circular, zero"),
        (dict(region_padding="reflect"), "expected one of circular, zero, replicate"),
        (dict(drop_path_rate=1), "drop_path_rate"),
    ],
)
def test_bad_arguments_say_what_is_expected(kwargs, message):
    with pytest.raises(ValueError, match="HireMLP: ") as error:
        HireMLPNet(**{"arch": NANO, **kwargs})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_arch_record_dict_and_name_are_one():
    record = ARCHS["tiny"]
    as_dict = dict(depths=record.depths, dims=list(record.dims))
    assert HireMLPNet(as_dict).arch == HireMLPNet(record).arch == HireMLPNet("tiny").arch == record
    assert isinstance(record, Arch)
