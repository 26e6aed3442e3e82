"""Move tokens of a map: shift them across regions, and back, with the gradients.

Maps are (B, C, H, W) and lie in memory as (B, H, W, C), so that the channels of a token are
neighbours and every copy moves whole tokens. An axis is 2 (height) or 3 (width).

The network does not ask how it is executed; this file asks in its place:

- In Python, runs of consecutive tokens are copied, and the gradient of a copy is a copy, too.
  (Autograd would zero and add a whole map for each run.)
- Under `torch.compile` and `torch.export`, tokens are gathered by index, so that one graph serves
  maps of all sizes.
- Under `torch.jit.trace`, runs are put together by plain operations.
- `torch.fx.symbolic_trace` takes each function marked `wrap` as one step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function
from torch.fx import wrap
from torch.nn import functional as F

SHIFT_PADDINGS = ("circular", "zero")
REGION_PADDINGS = ("circular", "zero", "replicate")


@wrap
def shift(
    x: Tensor,
    axis: int,
    shift: int,
    region_size: int,
    shift_padding: str = "circular",
    region_padding: str = "circular",
) -> Tensor:
    """Shift tokens across regions, then pad the last region.

    The order is the reference's, so a circular `region_padding` repeats the first tokens of the
    shifted map. On a map smaller than the shift or the padding, indices wrap repeatedly, where the
    reference raises an error.

    Args:
        x: (B, C, H, W).
        axis: 2 or 3.
        shift: in tokens, towards larger indices.
        region_size: the size along `axis` is rounded up to a multiple of it.
        shift_padding: the tokens that a shift brings in: `circular` (those that left the map at
            its other end) or `zero`.
        region_padding: the tokens that complete the last region: `circular` (the first ones),
            `zero` or `replicate` (the last one).

    Returns:
        (B, C, H', W), H' = ceil(H / p) * p, or the same along the width.
    """
    size = x.shape[axis]
    rounded = (size + region_size - 1) // region_size * region_size
    if torch.compiler.is_compiling():
        return shift_by_index(x, axis, shift, rounded, shift_padding, region_padding, region_size)
    if shift_padding == region_padding == "circular":
        return circular_slice(x, axis, -shift, rounded, size)
    if shift_padding == "circular":
        x = circular_slice(x, axis, -shift, size, size)
    else:
        moved = min(shift, size)
        x = zero_pad(x, axis, moved, -moved)
    if region_padding == "circular":
        return circular_slice(x, axis, 0, rounded, size)
    if region_padding == "zero":
        return zero_pad(x, axis, 0, rounded - size)
    last = x.narrow(axis, size - 1, 1)
    return torch.cat([x, *[last] * (rounded - size)], axis)


def shift_gradient(grad: Tensor, axis: int, shift: int, size: int) -> Tensor:
    """Return the gradient of a circular `shift` of a map with `size` tokens along `axis`."""
    if shift % size == 0 and grad.shape[axis] == size:
        return grad
    grad, length = tokens_first(grad), grad.shape[axis]
    return channels_first(add_runs(grad, size, axis - 1, -shift, length, size))


@wrap
def unshift(x: Tensor, axis: int, shift: int, size: int) -> Tensor:
    """Keep the first `size` tokens along `axis`, and shift them back circularly.

    Args:
        x: (B, C, H, W), with at least `size` tokens along `axis`.
        shift: in tokens, towards smaller indices.
    """
    if torch.compiler.is_compiling():
        source = (torch.arange(size, device=x.device) + shift) % size
        target = (torch.arange(x.shape[axis], device=x.device) - shift) % size
        return gather(x, axis, source, target, 0)
    return circular_slice(x, axis, shift, size, size)


def add_unshifted(out: Tensor, x: Tensor, axis: int, shift: int) -> Tensor:
    """Add the first tokens of `x`, shifted back circularly, to `out`, which may be overwritten."""
    size = out.shape[axis]
    if torch.compiler.is_compiling():
        return out + unshift(x, axis, shift, size)
    for done, source, run in runs(shift, size, size):
        out.narrow(axis, done, run).add_(x.narrow(axis, source, run))
    return out


@wrap
def regions_to_tokens(x: Tensor, axis: int, region_size: int) -> Tensor:
    """Spread the channels of each region over its tokens.

    Channel `c * p + k` of a region is channel c of its token k, as in the reference.

    Args:
        x: (B, C * p, H / p, W), or (B, C * p, H, W / p) where `axis` is 3.

    Returns:
        (B, C, H, W).
    """
    if torch.compiler.is_compiling():  # inductor picks layouts, and fails on views of free sizes
        # (B, C * p, H / p, W) -> (B, C, p, H / p, W) -> (B, C, H / p, p, W) -> (B, C, H, W)
        x = x.unflatten(1, (-1, region_size)).movedim(2, axis + 1)
        return x.flatten(axis, axis + 1)
    # (B, H / p, W, C * p) -> (B, H / p, W, C, p) -> (B, H / p, p, W, C) -> (B, H, W, C)
    x = tokens_first(x).unflatten(3, (-1, region_size)).movedim(4, axis)
    return channels_first(x.flatten(axis - 1, axis))


@wrap
def check_image(image: Tensor, channels: int) -> Tensor:
    """Return images as they are; raise ValueError unless they are (N, channels, H, W)."""
    if image.dim() != 4 or image.shape[1] != channels:
        hint = "; image[None] makes a batch of one" if image.dim() == 3 else ""
        raise ValueError(
            f"HireMLP: the images are of shape {tuple(image.shape)}; expected "
            f"(N, {channels}, H, W){hint}"
        )
    return image


@wrap
def pad_to_smallest(x: Tensor, smallest: int) -> Tensor:
    """Pad a tiny map with zeros at its end, to at least `smallest` tokens along each side."""
    missing = [max(0, smallest - side) for side in (x.shape[3], x.shape[2])]
    return F.pad(x, (0, missing[0], 0, missing[1])) if any(missing) else x


@wrap
def lay_out_like(x: Tensor, image: Tensor) -> Tensor:
    """Return `x` as it is if the image is channels last in memory, else contiguous."""
    return x if is_channels_last(image) else x.contiguous()


def is_channels_last(image: Tensor) -> bool:
    """Tell whether an image (B, C, H, W) lies in memory as (B, H, W, C), and only so."""
    last = image.is_contiguous(memory_format=torch.channels_last)
    return last and not image.is_contiguous()


def tokens_first(x: Tensor) -> Tensor:
    """View (B, C, H, W) as (B, H, W, C)."""
    return x.permute(0, 2, 3, 1)


def channels_first(x: Tensor) -> Tensor:
    """View (B, H, W, C) as (B, C, H, W)."""
    return x.permute(0, 3, 1, 2)


def zero_pad(x: Tensor, axis: int, front: int, back: int) -> Tensor:
    """Pad `axis` with zeros; a negative number takes tokens away."""
    return F.pad(x, (0, 0) * (x.ndim - 1 - axis) + (front, back))


# By runs ----------------------------------------------------------------------------------------


def circular_slice(x: Tensor, axis: int, start: int, length: int, size: int) -> Tensor:
    """Take `length` tokens from index `start` on, indices modulo `size`.

    Args:
        x: (B, C, H, W).
        start: any integer.
        length: may exceed `size`.
        size: how many of the map's first tokens take part.

    Returns:
        `x` itself if nothing moves, else a copy; without gradients, a view where one run suffices.
    """
    start %= size
    if start == 0 and length == size == x.shape[axis]:
        return x
    x = tokens_first(x)
    if x.requires_grad and torch.is_grad_enabled() and torch._C._get_tracing_state() is None:
        x = CircularSlice.apply(x, axis - 1, start, length, size)
    else:
        x = join_runs(x, axis - 1, start, length, size)
    return channels_first(x)


def runs(start: int, length: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Divide a circular slice into runs without a wrap.

    Yields:
        The index of the run's first token in the slice, that in the source, and the run's length.
    """
    done = 0
    while done < length:
        source = (start + done) % size
        run = min(size - source, length - done)
        yield done, source, run
        done += run


def join_runs(x: Tensor, axis: int, start: int, length: int, size: int) -> Tensor:
    """Compute `circular_slice` by slices put together."""
    slices = [x.narrow(axis, source, run) for _, source, run in runs(start, length, size)]
    return slices[0] if len(slices) == 1 else torch.cat(slices, axis)


def add_runs(grad: Tensor, total: int, axis: int, start: int, length: int, size: int) -> Tensor:
    """Add up the tokens of a circular slice at their indices in a map of `total` tokens."""
    out = grad.new_empty([*grad.shape[:axis], total, *grad.shape[axis + 1 :]])
    first = min(length, size)  # as many tokens are the first to land at their index
    if first < size:
        out.zero_()
    elif size < total:
        out.narrow(axis, size, total - size).zero_()
    for done, source, run in runs(start, first, size):
        out.narrow(axis, source, run).copy_(grad.narrow(axis, done, run))
    for done, source, run in runs(start + first, length - first, size):
        out.narrow(axis, source, run).add_(grad.narrow(axis, first + done, run))
    return out


class CircularSlice(Function):
    """Take a circular slice; its gradient is `AddSlice`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, axis: int, start: int, length: int, size: int) -> Tensor:
        """Join the runs, in memory of their own."""
        out = join_runs(x, axis, start, length, size)
        return out.clone() if out._is_view() else out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep only the numbers."""
        x, *ctx.numbers = inputs
        ctx.total = x.shape[ctx.numbers[0]]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of `x`."""
        return AddSlice.apply(grad, ctx.total, *ctx.numbers), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        """Slice the tangent: the operation is linear."""
        return CircularSlice.apply(tangent, *ctx.numbers)


class AddSlice(Function):
    """Add up the tokens of a circular slice; its gradient is `CircularSlice`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, total: int, axis: int, start: int, length: int, size: int) -> Tensor:
        """Add up the runs."""
        return add_runs(grad, total, axis, start, length, size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep only the numbers."""
        _, ctx.total, *ctx.numbers = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the slice."""
        return CircularSlice.apply(grad, *ctx.numbers), None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        """Add up the tangent: the operation is linear."""
        return AddSlice.apply(tangent, ctx.total, *ctx.numbers)


# By index ---------------------------------------------------------------------------------------


def shift_by_index(
    x: Tensor,
    axis: int,
    shift: int,
    rounded: int,
    shift_padding: str,
    region_padding: str,
    region_size: int,
) -> Tensor:
    """Compute `shift` without a decision on the size; `rounded` is the size of the result."""
    size = x.shape[axis]
    source = torch.arange(rounded, device=x.device)
    kept = source < (size if region_padding == "zero" else rounded)
    if region_padding == "replicate":
        source = source.clamp(max=size - 1)
    elif region_padding == "circular":
        source = source % size
    source = source - shift
    if shift_padding == "zero":
        kept = kept & (source >= 0)
    target = (torch.arange(size, device=x.device) + shift) % size
    x = gather(x, axis, source % size, target, region_size - 1)
    if "zero" in (shift_padding, region_padding):
        x = x.masked_fill(~kept.view((-1,) + (1,) * (x.ndim - 1 - axis)), 0)
    return x


def gather(x: Tensor, axis: int, source: Tensor, target: Tensor, max_repeats: int) -> Tensor:
    """Compute `x.index_select(axis, source)`, whose gradient is gathered, too.

    Autograd's gradient is an index_add. Inductor's kernels of that for several threads write past
    the map (torch 2.11; pytorch/pytorch#191837 is the same fault), and a GPU sums in random order.

    Args:
        source: for each token of the result, its index in `x`.
        target: for each token of `x`, its first index in the result; any index if it is dropped.
        max_repeats: at most how many tokens the result has beyond the length of `x`. These may
            repeat earlier ones.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return Gather.apply(x, axis, source, target, max_repeats)
    return x.index_select(axis, source)


class Gather(Function):
    """Select tokens by index; the gradient selects and adds tokens by index, too."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, axis: int, source: Tensor, target: Tensor, max_repeats: int
    ) -> Tensor:
        """Select by index."""
        ctx.axis, ctx.max_repeats = axis, max_repeats
        ctx.save_for_backward(source, target)
        return x.index_select(axis, source)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Take each token's gradient at its first index, and add those of its repeats."""
        source, target = ctx.saved_tensors
        column = (-1,) + (1,) * (grad.ndim - 1 - ctx.axis)
        token = torch.arange(len(target), device=grad.device)
        is_in_result = source.index_select(0, target) == token
        zero = grad.new_zeros(())
        out = torch.where(is_in_result.view(column), grad.index_select(ctx.axis, target), zero)
        is_repeat = torch.arange(len(source), device=grad.device) >= len(target)
        for last in range(-ctx.max_repeats, 0):
            here = (token == source[last]) & is_repeat[last]
            out = out + torch.where(here.view(column), grad.narrow(ctx.axis, last, 1), zero)
        return out, None, None, None, None
