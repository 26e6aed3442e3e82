"""Do shifts move tokens as they say, and are their gradients exact, however they are run?"""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hire_mlp_mm import ops
from hire_mlp_mm.hire_mlp import HEIGHT, WIDTH

SIZES = st.integers(1, 9)
AXES = st.sampled_from([HEIGHT, WIDTH])


def indices(size: int, shift: int, region_size: int) -> torch.Tensor:
    """For each token of a circularly shifted and padded map, its index before."""
    rounded = -(-size // region_size) * region_size
    return torch.tensor([(i % size - shift) % size for i in range(rounded)])


def image(axis: int, size: int) -> torch.Tensor:
    shape = [2, 3, 4, 4]
    shape[axis] = size
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def gradient(out: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    weights = torch.sin(torch.arange(out.numel(), dtype=out.dtype)).view_as(out)
    return torch.autograd.grad((out * weights).sum(), x)[0]


@settings(max_examples=150, deadline=None)
@given(size=SIZES, region=st.integers(1, 12), shift=st.integers(0, 20), axis=AXES)
def test_a_shift_is_indices_modulo_the_size(size, region, shift, axis):
    x = image(axis, size)
    ours = ops.shift(x, axis, shift, region)
    how = (size, shift, region)
    plain = x.index_select(axis, indices(*how))
    assert torch.equal(ours, plain)
    torch.testing.assert_close(gradient(ours, x), gradient(plain, x))
    weights = torch.sin(torch.arange(plain.numel(), dtype=plain.dtype)).view_as(plain)
    by_hand = ops.shift_gradient(weights, axis, shift, size)
    torch.testing.assert_close(by_hand, gradient(x.index_select(axis, indices(*how)), x))
    with torch.no_grad():
        assert torch.equal(ops.shift(x, axis, shift, region), plain)


@settings(max_examples=100, deadline=None)
@given(size=SIZES, more=st.integers(0, 3), shift=st.integers(0, 20), axis=AXES)
def test_unshift_undoes_a_shift(size, more, shift, axis):
    x = image(axis, size)
    shifted = ops.shift(x, axis, shift, size + more)
    restored = ops.unshift(shifted, axis, shift, size)
    assert torch.equal(restored, x)
    torch.testing.assert_close(gradient(restored, x), gradient(x * 1, x))


@pytest.mark.parametrize("axis", [HEIGHT, WIDTH])
def test_regions_to_tokens_is_the_references_order(axis):
    x = image(axis, 2).repeat(1, 4, 1, 1)  # (2, 12, ...): 3 channels of 4 tokens a region
    tokens = ops.regions_to_tokens(x, axis, 4)
    for region, token, channel in itertools.product(range(2), range(4), range(3)):
        theirs = x[:, channel * 4 + token].select(axis - 1, region)
        assert torch.equal(tokens[:, channel].select(axis - 1, region * 4 + token), theirs)


def test_no_copy_without_shift_and_padding():
    x = torch.rand(1, 4, 6, 6)
    assert ops.shift(x, HEIGHT, 0, 3) is x
    assert ops.unshift(x, WIDTH, 0, 6) is x


def test_an_infinite_token_does_not_reach_a_padded_one(monkeypatch):
    x = torch.full((1, 1, 3, 1), torch.inf)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    padded = ops.shift(x, HEIGHT, 1, 4, "zero", "zero")
    assert padded.flatten().tolist() == [0, torch.inf, torch.inf, 0]


def test_derivatives_of_every_kind():
    """Second and forward-mode derivatives, and those of torch.func."""
    x = image(HEIGHT, 5)

    def there_and_back(x):
        return ops.unshift(torch.sin(ops.shift(x, HEIGHT, 2, 4)), HEIGHT, 1, 4)

    assert torch.autograd.gradcheck(there_and_back, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(there_and_back, x)
    plain = torch.autograd.grad(there_and_back(x).sum(), x)[0]
    ours = torch.func.grad(lambda x: there_and_back(x).sum())(x.detach())
    torch.testing.assert_close(ours, plain)
    images = torch.stack([x, 2 * x]).detach()
    each = torch.func.vmap(torch.func.grad(lambda x: there_and_back(x).sum()))(images)
    torch.testing.assert_close(each[0], plain)


@pytest.mark.parametrize("region_padding", ops.REGION_PADDINGS)
@pytest.mark.parametrize("shift_padding", ops.SHIFT_PADDINGS)
@pytest.mark.parametrize("axis", [HEIGHT, WIDTH])
def test_what_compilers_see_is_the_same(axis, shift_padding, region_padding, monkeypatch):
    """By index, on maps of all sizes, with the gradient of the shift by runs."""
    for size, p, shift in itertools.product(range(1, 10), (1, 2, 3, 4), (0, 1, 2, 5)):
        rounded = -(-size // p) * p

        def shifted(x, how=(shift, p)):
            return ops.shift(x, axis, *how, shift_padding, region_padding)

        def unshifted(x, how=(shift, size)):
            return ops.unshift(x, axis, *how)

        for length, call in ((size, shifted), (rounded, unshifted)):
            x = image(axis, length)
            theirs = call(x)
            with monkeypatch.context() as patch:
                patch.setattr(torch.compiler, "is_compiling", lambda: True)
                ours = call(x)
            assert torch.equal(ours, theirs)
            torch.testing.assert_close(gradient(ours, x), gradient(theirs, x))
