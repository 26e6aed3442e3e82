"""What the backward pass does in its own way, to keep and to move less.

Autograd keeps what a convolution read. Where that is cheap to make (BatchNorm, a GELU, a copy of
shifted tokens, the weighted sum of the branches), `conv_of` keeps what it was made of instead, and
makes it again. The gradient of a shift is the opposite shift, one copy; from slices put together,
autograd would fill and add a whole map for each slice.

The numbers are those of the plain operations. Those stand wherever somebody else has a say: under a
compiler, a tracer or torch.func, and for layers that are hooked or of another kind.

Only torch is imported here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import Function
from torch.nn import functional as F
from torch.nn.modules import module as modules
from torch.nn.modules.batchnorm import _BatchNorm

thread = threading.local()


@contextmanager
def plain_operations() -> Iterator[None]:
    """Take the plain operations: in a block that is computed again as a whole, for one."""
    before = getattr(thread, "plain", False)
    thread.plain = True
    try:
        yield
    finally:
        thread.plain = before


def is_recorded() -> bool:
    """Whether autograd, and it alone, records what is done now."""
    return (
        torch.is_grad_enabled()
        and not getattr(thread, "plain", False)
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody waits for a module to be called."""
    kinds = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    return any(getattr(module, f"_{kind}") for kind in kinds) or any(
        getattr(modules, f"_global_{kind}") for kind in kinds
    )


# Recomputing ------------------------------------------------------------------------------------


Gradient = Callable[..., Sequence[Tensor]]


def conv_of(
    layer: nn.Module,
    function: Callable[..., Tensor],
    *inputs: Tensor,
    gradient: Gradient | None = None,
) -> Tensor:
    """`layer(function(*inputs))`, of which the inputs are kept for the backward pass.

    Args:
        layer: a convolution.
        function: cheap and without a state; it is run again in the backward pass.
        inputs: all that has a gradient through `function`.
        gradient: of every input, from that of what `function` gave, which it may write over, and
            the inputs. Without it autograd records `function` again, which takes longer.
    """
    hooked = isinstance(function, nn.Module) and is_hooked(function)
    if (
        hooked
        or not is_recorded()
        or not is_plain(layer)
        or inputs[-1].shape[2:].numel() == 1  # of a pixel there is next to nothing to keep
    ):
        return layer(function(*inputs))
    how = (layer.stride, function, function, gradient)
    return ConvOf.apply(*how, layer.weight, layer.bias, *inputs)


def conv_of_norm(layer: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """`layer(norm(x))`, of which `x` is kept for the backward pass if the norm is a BatchNorm."""
    if (
        not is_recorded()
        or not is_plain(layer)
        or type(norm) is not nn.BatchNorm2d  # others may have a state, or talk to other processes
        or is_hooked(norm)
    ):
        return layer(norm(x))
    eps, of_batch = norm.eps, norm.training or norm.running_mean is None
    statistics = (None, None) if of_batch else (norm.running_mean, norm.running_var)

    def again(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        variance: Tensor | None,
    ) -> Tensor:
        return F.batch_norm(x, mean, variance, weight, bias, of_batch, 0.0, eps)

    def first(x: Tensor, *_: Tensor | None) -> Tensor:
        return norm(x)  # which sees the batch

    inputs = (x, norm.weight, norm.bias, *statistics)
    return ConvOf.apply(layer.stride, first, again, None, layer.weight, layer.bias, *inputs)


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is a convolution without padding, and may be stepped past."""
    return (
        type(layer) is nn.Conv2d
        and layer.padding == (0, 0)
        and layer.dilation == (1, 1)
        and layer.groups == 1
        and not is_hooked(layer)
    )


class ConvOf(Function):
    """See `conv_of`; what gives the convolution's input first may differ from what does again."""

    @staticmethod
    def forward(
        ctx: Any,
        stride: tuple[int, int],
        first: Callable[..., Tensor],
        again: Callable[..., Tensor],
        gradient: Gradient | None,
        weight: Tensor,
        bias: Tensor | None,
        *inputs: Tensor | None,
    ) -> Tensor:
        ctx.stride, ctx.again, ctx.gradient = stride, again, gradient
        ctx.save_for_backward(weight, bias, *inputs)
        return F.conv2d(first(*inputs), weight, bias, stride)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias, *inputs = ctx.saved_tensors
        needed = ctx.needs_input_grad[4:]
        if torch.is_grad_enabled():  # somebody wants the gradient's gradient
            out = F.conv2d(ctx.again(*inputs), weight, bias, ctx.stride)
            found = gradients(out, (weight, bias, *inputs), needed, grad, True)
            return None, None, None, None, *found
        recording = ctx.gradient is None and any(needed[2:])
        if recording:
            inputs = [
                x if x is None else x.detach().requires_grad_(need)
                for x, need in zip(inputs, needed[2:], strict=True)
            ]
        with torch.set_grad_enabled(recording):
            middle = ctx.again(*inputs)
        # Under autocast the convolution ran in the type of its output.
        to_middle, to_weight, to_bias = torch.ops.aten.convolution_backward(
            grad,
            middle.detach().to(grad.dtype),
            weight.to(grad.dtype),
            None if bias is None else list(bias.shape),
            ctx.stride,
            [0, 0],  # padding
            [1, 1],  # dilation
            False,  # transposed
            [0, 0],  # output padding
            1,  # groups
            [any(needed[2:]), needed[0], needed[1]],
        )
        to_weight = to_weight.to(weight.dtype) if needed[0] else None
        to_bias = to_bias.to(bias.dtype) if needed[1] else None
        to_inputs: Sequence[Tensor | None] = [None] * len(inputs)
        if recording:
            to_inputs = gradients(middle, inputs, needed[2:], to_middle.to(middle.dtype), False)
        elif any(needed[2:]):
            to_middle = to_middle.to(middle.dtype)
            del middle  # its memory may serve again
            to_inputs = ctx.gradient(to_middle, *inputs)
        return None, None, None, None, to_weight, to_bias, *to_inputs


def gradients(
    out: Tensor,
    inputs: Sequence[Tensor | None],
    needed: Sequence[bool],
    grad: Tensor,
    create_graph: bool,
) -> list[Tensor | None]:
    """Gradients of those inputs that need one, None for the others."""
    wanted = [x for x, need in zip(inputs, needed, strict=True) if need and x is not None]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=create_graph))
    return [next(found) if need else None for need in needed]


def gelu_gradient(grad: Tensor, x: Tensor) -> list[Tensor]:
    """Of `F.gelu(x)`, for `conv_of`."""
    return [torch.ops.aten.gelu_backward.grad_input(grad, x, grad_input=grad)]


def weighted_sum(weights: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """Three maps, (B, C, H, W) each, by their weights (3, B, C, 1, 1)."""
    x = torch.addcmul(first * weights[0], second, weights[1])
    return torch.addcmul(x, third, weights[2])


def weighted_sum_gradient(grad: Tensor, weights: Tensor, *maps: Tensor) -> list[Tensor]:
    """Of `weighted_sum`, for `conv_of`."""
    to_weights, product = torch.empty_like(weights), torch.empty_like(grad)
    for x, to_weight in zip(maps, to_weights, strict=True):
        torch.sum(torch.mul(grad, x, out=product), (2, 3), keepdim=True, out=to_weight)
    del product
    return [to_weights, grad * weights[0], grad * weights[1], grad.mul_(weights[2])]


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Keep BatchNorm's running statistics as they are.

    What is computed again runs twice; its statistics must see the batch once.
    """
    before = [
        (norm, norm.momentum, norm.num_batches_tracked)
        for norm in module.modules()
        if isinstance(norm, _BatchNorm) and norm.num_batches_tracked is not None
    ]
    for norm, _, batches in before:
        norm.momentum = 0.0
        norm.num_batches_tracked = batches.clone()
    try:
        yield
    finally:
        for norm, momentum, batches in before:
            norm.momentum = momentum
            norm.num_batches_tracked = batches


# Shifting ---------------------------------------------------------------------------------------


def circular_slice(
    x: Tensor, axis: int, start: int, length: int, size: int | None = None
) -> Tensor:
    """`length` entries of `x` along `axis` from `start` on, indices modulo `size`.

    All of `x` is `x` itself. Else one copy, or a view where the entries lie in one run and nobody
    records; `length` may exceed the size.

    Args:
        size: entries of `x` that count, those before this; all of them if None.
    """
    size = x.shape[axis] if size is None else size
    start %= size
    if start == 0 and length == size == x.shape[axis]:
        return x
    if not is_recorded() or not x.requires_grad:
        return join_runs(x, axis, start, length, size)
    return CircularSlice.apply(x, axis, start, length, size)


def runs(start: int, length: int, size: int) -> Iterator[tuple[int, int, int]]:
    """A circular slice as (place in it, place in the source, length) of runs without a wrap."""
    done = 0
    while done < length:
        place = (start + done) % size
        run = min(size - place, length - done)
        yield done, place, run
        done += run


def join_runs(x: Tensor, axis: int, start: int, length: int, size: int) -> Tensor:
    """`circular_slice` by slices put together."""
    slices = [x.narrow(axis, place, run) for _, place, run in runs(start, length, size)]
    return slices[0] if len(slices) == 1 else torch.cat(slices, axis)


class CircularSlice(Function):
    """`join_runs`, whose gradient is put together the other way round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: int, start: int, length: int, size: int) -> Tensor:
        ctx.shape, ctx.place = x.shape, (axis, start, length, size)
        out = join_runs(x, axis, start, length, size)
        return out.clone() if out._is_view() else out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        axis, start, length, size = ctx.place
        if torch.is_grad_enabled():  # somebody wants the gradient's gradient
            places = (torch.arange(length, device=grad.device) + start) % size
            zeros = grad.new_zeros(ctx.shape)
            return zeros.index_add(axis, places, grad), None, None, None, None
        to_x = circular_slice_gradient(grad, ctx.shape, axis, start, length, size)
        return to_x, None, None, None, None


def circular_slice_gradient(
    grad: Tensor, shape: torch.Size, axis: int, start: int, length: int, size: int
) -> Tensor:
    """Of `circular_slice` of an `x` of a shape; the arguments are those."""
    start %= size
    total = shape[axis]
    if start == 0 and length == size == total:
        return grad
    out = grad.new_empty(shape)
    once = min(length, size)  # the entries that are the first to land on their place
    if once < size:
        out.zero_()
    elif size < total:
        out.narrow(axis, size, total - size).zero_()
    for done, place, run in runs(start, once, size):
        out.narrow(axis, place, run).copy_(grad.narrow(axis, done, run))
    for done, place, run in runs(start + once, length - once, size):
        out.narrow(axis, place, run).add_(grad.narrow(axis, once + done, run))
    return out


# Shifting, under a compiler ----------------------------------------------------------------------


def gather(x: Tensor, axis: int, place: Tensor, back: Tensor, repeats: int) -> Tensor:
    """`x.index_select(axis, place)`, whose gradient is gathered, too.

    Autograd's gradient adds up at indices. Of that, inductor makes kernels for several threads
    that write past the map (torch 2.11 does, pytorch/pytorch#191837 is the same), and on a GPU
    the order of the sum is chance.

    Args:
        place: the entry of `x` that each entry of the result is.
        back: for each entry of `x`, the entry of the result that it is, if it is one.
        repeats: how many of the result's last entries may be entries of `x` that stand in it
            before; they begin where `x` ends.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return Gather.apply(x, axis, place, back, repeats)
    return x.index_select(axis, place)


class Gather(Function):
    """See `gather`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, axis: int, place: Tensor, back: Tensor, repeats: int
    ) -> Tensor:
        ctx.axis, ctx.repeats = axis, repeats
        ctx.save_for_backward(place, back)
        return x.index_select(axis, place)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        place, back = ctx.saved_tensors
        along = (-1,) + (1,) * (grad.ndim - 1 - ctx.axis)
        entry = torch.arange(len(back), device=grad.device)
        once = place.index_select(0, back) == entry
        zero = grad.new_zeros(())
        out = torch.where(once.view(along), grad.index_select(ctx.axis, back), zero)
        repeated = torch.arange(len(place), device=grad.device) >= len(back)
        for last in range(-ctx.repeats, 0):
            here = (entry == place[last]) & repeated[last]
            out = out + torch.where(here.view(along), grad.narrow(ctx.axis, last, 1), zero)
        return out, None, None, None, None
