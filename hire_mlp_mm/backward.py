"""What the backward pass does in its own way, to keep and to move less.

Autograd keeps what a convolution read. Where that is cheap to make (a norm, a GELU, a copy of
shifted tokens, the weighted sum of the branches), `conv_of` keeps what it was made of instead, and
makes it again. The gradient of a shift is the opposite shift, one copy; from slices put together,
autograd would fill and add a whole map for each slice.

The numbers are those of the plain operations, which a compiler gets: it finds its own ways.

Only torch is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm


def is_recorded() -> bool:
    """Whether autograd records what is done now, and neither a compiler nor a tracer does."""
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
    )


# Recomputing ------------------------------------------------------------------------------------


def conv_of(layer: nn.Conv2d, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`layer(function(*inputs))`, of which the inputs are kept for the backward pass.

    Args:
        layer: without padding.
        function: cheap; it is run again in the backward pass, and must give the same then.
        inputs: all that has a gradient through `function`.
    """
    if not is_recorded() or not is_plain(layer):
        return layer(function(*inputs))
    return ConvOf.apply(layer.stride, function, layer.weight, layer.bias, *inputs)


def conv_of_norm(layer: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """`layer(norm(x))`, of which `x` is kept for the backward pass."""
    # SyncBatchNorm would have to talk to the other processes again.
    if not is_recorded() or not is_plain(layer) or isinstance(norm, SyncBatchNorm):
        return layer(norm(x))
    parameters = dict(norm.named_parameters())
    first = True

    def again(x: Tensor, *values: Tensor) -> Tensor:
        nonlocal first
        given = dict(zip(parameters, values, strict=True))
        if first:
            first = False
            return functional_call(norm, given, x)
        with frozen_statistics(norm):
            return functional_call(norm, given, x)

    return conv_of(layer, again, x, *parameters.values())


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer may be stepped past: nobody has put another in its place or hooked it."""
    return type(layer) is nn.Conv2d and not (layer._forward_hooks or layer._forward_pre_hooks)


class ConvOf(Function):
    """See `conv_of`."""

    @staticmethod
    def forward(
        ctx: Any,
        stride: tuple[int, int],
        function: Callable[..., Tensor],
        weight: Tensor,
        bias: Tensor | None,
        *inputs: Tensor,
    ) -> Tensor:
        ctx.stride, ctx.function = stride, function
        ctx.save_for_backward(weight, bias, *inputs)
        return F.conv2d(function(*inputs), weight, bias, stride)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias, *inputs = ctx.saved_tensors
        needed = ctx.needs_input_grad
        with torch.enable_grad():
            inputs = [
                x.detach().requires_grad_(need) for x, need in zip(inputs, needed[4:], strict=True)
            ]
            middle = ctx.function(*inputs)
        # Under autocast the convolution ran in the type of its output.
        grads = torch.ops.aten.convolution_backward(
            grad,
            middle.detach().to(grad.dtype),
            weight.to(grad.dtype),
            None if bias is None else list(bias.shape),
            ctx.stride,
            [0, 0],
            [1, 1],
            False,
            [0, 0],
            1,
            [any(needed[4:]), needed[2], needed[3]],
        )
        leaves = [x for x in inputs if x.requires_grad]
        found = iter(
            torch.autograd.grad(middle, leaves, grads[0].to(middle.dtype)) if leaves else ()
        )
        to_weight = grads[1].to(weight.dtype) if needed[2] else None
        to_bias = grads[2].to(bias.dtype) if needed[3] else None
        return (
            None,
            None,
            to_weight,
            to_bias,
            *(next(found) if x.requires_grad else None for x in inputs),
        )


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

    A view where the entries lie in one run, else one copy; `length` may exceed the size.

    Args:
        size: entries of `x` that count, those before this; all of them if None.
    """
    size = x.shape[axis] if size is None else size
    start %= size
    if start == 0 and length == size == x.shape[axis]:
        return x
    if not is_recorded():
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
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        axis, start, length, size = ctx.place
        total = ctx.shape[axis]
        out = grad.new_empty(ctx.shape)
        once = min(length, size)  # the entries that are the first to land on their place
        if once < size:
            out.zero_()
        elif size < total:
            out.narrow(axis, size, total - size).zero_()
        for done, place, run in runs(start, once, size):
            out.narrow(axis, place, run).copy_(grad.narrow(axis, done, run))
        for done, place, run in runs(start + once, length - once, size):
            out.narrow(axis, place, run).add_(grad.narrow(axis, once + done, run))
        return out, None, None, None, None
