"""Run the blocks of Hire-MLP in less memory, for the same numbers.

Autograd keeps what every convolution read. Four of those maps are cheap to make: shifted tokens, a
BatchNorm's output, a GELU's output, the weighted sum of three branches. `LeanBlock` keeps what
they were made from, which autograd keeps anyway, and makes each again in the backward pass. In
inference on a CPU it runs the channel MLP in parts, for the sake of the cache. `RecomputedBlock`
keeps only its input. Parameters and their names are those of `Block`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import Function
from torch.nn import functional as F
from torch.nn.modules import module as modules
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from . import ops
from .hire_mlp import Block, HireModule, Mlp, RegionBranch, weighted_sum

HIDDEN_BYTES = 8 * 2**20  # of a channel MLP's hidden map at a time, in inference on a CPU


class LeanBlock(Block):
    """Keep less for the backward pass than `Block`, and use less memory in inference."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        if not may_recompute(self, x):
            return super().forward(x)
        x = x + self.drop_path(lean_mixer(self.token_mixer, self.norm1(x)))
        if torch.is_grad_enabled():
            return x + self.drop_path(lean_mlp(self.mlp, self.norm2, x))
        return x + self.drop_path(mlp_in_parts(self.mlp, self.norm2(x)))


class RecomputedBlock(LeanBlock):
    """Keep only the input for the backward pass, which runs the whole block again."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        if not torch.is_grad_enabled() or not isinstance(x, Tensor):  # an fx.Proxy is none
            return super().forward(x)
        contexts = nullcontext(), FrozenStatistics(self)  # of the first run and of the later ones
        plain = partial(Block.forward, self)
        return checkpoint(plain, x, use_reentrant=False, context_fn=lambda: contexts)


def may_recompute(block: Block, x: Tensor) -> bool:
    """Tell whether operations of a block may be done out of turn, or a second time.

    Not under a compiler, a tracer or torch.func, which record operations; nor where a layer whose
    `forward` would be bypassed has hooks (DeepSpeed loads weights in them) or is of another class
    than built (LoRA, quantisation).
    """
    if (type(block.token_mixer), type(block.mlp)) != (HireModule, Mlp):
        return False
    mixer, mlp = block.token_mixer, block.mlp
    branches = (mixer.height, mixer.width)
    if any(type(branch) is not RegionBranch for branch in branches):
        return False
    convs = (*(branch.reduce for branch in branches), mixer.proj, mlp.fc1, mlp.fc2)
    return (
        type(x) is Tensor  # not an fx.Proxy, nor a tensor without numbers
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and all(type(conv) is nn.Conv2d for conv in convs)
        and type(mlp.act) is nn.GELU
        and mlp.act.approximate == "none"
        and not are_hooked(mixer, mlp, mlp.act, *branches, *convs)
    )


def are_hooked(*layers: nn.Module) -> bool:
    """Tell whether one of some layers has hooks, or a `forward` of its own, or all have hooks."""
    kinds = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    return any(getattr(modules, f"_global_{kind}") for kind in kinds) or any(
        "forward" in vars(layer) or any(getattr(layer, f"_{kind}") for kind in kinds)
        for layer in layers
    )


# Inference --------------------------------------------------------------------------------------


def mlp_in_parts(mlp: Mlp, x: Tensor) -> Tensor:
    """Run a channel MLP by rows or images, on a CPU whose cache cannot hold its hidden map."""
    hidden_bytes = x.nbytes // x.shape[1] * mlp.fc1.out_channels
    parts = -(-hidden_bytes // HIDDEN_BYTES)
    if x.device.type != "cpu" or parts <= 2:  # two gain nothing
        return mlp(x)
    axis = 0 if len(x) > 1 else 2  # rows of several images are no neighbours in memory
    return torch.cat([mlp(part) for part in x.split(-(-x.shape[axis] // parts), axis)], axis)


# Training ---------------------------------------------------------------------------------------


def lean_mixer(mixer: HireModule, x: Tensor) -> Tensor:
    """Compute `mixer(x)`, keeping `x` and the branches, but no shifted `x` and no weighted sum."""
    branches = (lean_branch(mixer.height, x), lean_branch(mixer.width, x), mixer.channel(x))
    gate = mixer.gate(*branches)
    return conv_of(mixer.proj, weighted_sum, weighted_sum_gradient, gate, *branches)


def lean_branch(branch: RegionBranch, x: Tensor) -> Tensor:
    """Compute `branch(x)`, keeping `x` and not its shifted copy."""
    circular = branch.shift_padding == branch.region_padding == "circular"
    gradient = partial(rearranged_gradient, branch) if circular else None
    hidden = conv_of(branch.reduce, branch.rearrange, gradient, x)
    return branch.restore(hidden, x.shape[branch.axis])


def lean_mlp(mlp: Mlp, norm: nn.Module, x: Tensor) -> Tensor:
    """Compute `mlp(norm(x))`, keeping the hidden map before the GELU and, for BatchNorm, `x`."""
    return conv_of(mlp.fc2, F.gelu, gelu_gradient, conv_of_norm(mlp.fc1, norm, x))


Gradient = Callable[..., Sequence[Tensor]]


def conv_of(
    layer: nn.Conv2d, function: Callable[..., Tensor], gradient: Gradient | None, *inputs: Tensor
) -> Tensor:
    """Compute `layer(function(*inputs))`, keeping the inputs for the backward pass.

    Args:
        layer: a convolution without padding, dilation and groups.
        function: cheap and without a state; the backward pass runs it again.
        gradient: computes, from the output's gradient (which it may overwrite) and the inputs,
            the gradient of each input. With None, autograd runs `function` again, which is slower.
        inputs: all tensors that have a gradient through `function`.
    """
    fixed = (layer.stride, function, function, gradient)
    return ConvOf.apply(*fixed, layer.weight, layer.bias, *inputs)


def conv_of_norm(layer: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """Compute `layer(norm(x))`, keeping `x` for the backward pass if the norm is a BatchNorm."""
    if type(norm) is not nn.BatchNorm2d or are_hooked(norm):  # SyncBatchNorm communicates
        return layer(norm(x))
    uses_batch, eps = norm.training or norm.running_mean is None, norm.eps
    statistics = (None, None) if uses_batch else (norm.running_mean, norm.running_var)

    def compute(x: Tensor, *_: Tensor | None) -> Tensor:
        return norm(x)  # updates the running statistics

    def recompute(
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor | None,
        variance: Tensor | None,
    ) -> Tensor:
        return F.batch_norm(x, mean, variance, weight, bias, uses_batch, 0.0, eps)

    inputs = (x, norm.weight, norm.bias, *statistics)
    return ConvOf.apply(layer.stride, compute, recompute, None, layer.weight, layer.bias, *inputs)


class ConvOf(Function):
    """Convolve a map that the backward pass computes again from the inputs that are kept."""

    @staticmethod
    def forward(
        ctx: Any,
        stride: tuple[int, int],
        compute: Callable[..., Tensor],
        recompute: Callable[..., Tensor],
        gradient: Gradient | None,
        weight: Tensor,
        bias: Tensor | None,
        *inputs: Tensor | None,
    ) -> Tensor:
        """Convolve `compute(*inputs)`."""
        ctx.stride, ctx.recompute, ctx.gradient = stride, recompute, gradient
        ctx.save_for_backward(weight, bias, *inputs)
        return F.conv2d(compute(*inputs), weight, bias, stride)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of weight, bias and inputs."""
        weight, bias, *inputs = ctx.saved_tensors
        needed = ctx.needs_input_grad[4:]
        if torch.is_grad_enabled():  # somebody wants the gradient's gradient
            # Views, so that no input is an ancestor of another.
            tensors: list[Any] = [x if x is None else x.view_as(x) for x in ctx.saved_tensors]
            conv_input = ctx.recompute(*tensors[2:])
            # Under autocast the convolution ran in the type of its output, here and below.
            operands: list[Any] = [conv_input, *tensors[:2]]
            operands = [x if x is None else x.to(grad.dtype) for x in operands]
            out = F.conv2d(operands[0], operands[1], operands[2], ctx.stride)
            found = gradients(out, tensors, needed, grad, True)
            return None, None, None, None, *found
        recording = ctx.gradient is None and any(needed[2:])
        if recording:
            inputs = [
                x if x is None else x.detach().requires_grad_(need)
                for x, need in zip(inputs, needed[2:], strict=True)
            ]
        with torch.set_grad_enabled(recording):
            conv_input = ctx.recompute(*inputs)
        grad_input, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grad,
            conv_input.detach().to(grad.dtype),
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
        grad_weight = grad_weight.to(weight.dtype) if needed[0] else None
        grad_bias = grad_bias.to(bias.dtype) if needed[1] else None
        found = [None] * len(inputs)
        if any(needed[2:]):
            grad_input = grad_input.to(conv_input.dtype)
            if recording:
                found = gradients(conv_input, inputs, needed[2:], grad_input, False)
            else:
                del conv_input  # its memory may serve again
                found = ctx.gradient(grad_input, *inputs)
        return None, None, None, None, grad_weight, grad_bias, *found


def gradients(
    out: Tensor,
    inputs: Sequence[Tensor | None],
    needed: Sequence[bool],
    grad: Tensor,
    create_graph: bool,
) -> list[Tensor | None]:
    """Return the gradients of the inputs that need one, None for the others."""
    wanted = [x for x, need in zip(inputs, needed, strict=True) if need and x is not None]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=create_graph))
    return [next(found) if need else None for need in needed]


def gelu_gradient(grad: Tensor, x: Tensor) -> list[Tensor]:
    """Return the gradient of `F.gelu`, written over `grad`."""
    return [torch.ops.aten.gelu_backward.grad_input(grad, x, grad_input=grad)]


def weighted_sum_gradient(grad: Tensor, weights: Tensor, *maps: Tensor) -> list[Tensor]:
    """Return the gradients of `weighted_sum`; the last is written over `grad`."""
    to_weights, product = torch.empty_like(weights), torch.empty_like(grad)
    for x, to_weight in zip(maps, to_weights, strict=True):
        torch.sum(torch.mul(grad, x, out=product), (2, 3), keepdim=True, out=to_weight)
    del product
    return [to_weights, grad * weights[0], grad * weights[1], grad.mul_(weights[2])]


def rearranged_gradient(branch: RegionBranch, grad: Tensor, x: Tensor) -> list[Tensor]:
    """Return the gradient of `branch.rearrange` where both paddings are circular."""
    return [ops.shift_gradient(grad, branch.axis, branch.shift, x.shape[branch.axis])]


class FrozenStatistics:
    """Keep BatchNorm's running statistics while a block runs again: they see each batch once."""

    def __init__(self, module: nn.Module) -> None:
        norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
        self.norms = [norm for norm in norms if norm.num_batches_tracked is not None]

    def __enter__(self) -> None:
        self.before = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        for norm in self.norms:
            norm.momentum = 0.0
            norm.num_batches_tracked = norm.num_batches_tracked.clone()  # type: ignore[union-attr]

    def __exit__(self, *_: object) -> None:
        for norm, (momentum, batches) in zip(self.norms, self.before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
