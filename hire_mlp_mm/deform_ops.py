"""Stand in for mmcv's deformable convolutions with torchvision's, for models of other people.

The functions have the names and arguments of `mmcv._ext`; some tensors are memory for mmcv's own
kernels. Shapes are the same everywhere: x (N, C, H, W), weight (O, C / groups, kh, kw), bias (O,),
output (N, O, h, w), and, for G groups of offsets, offset (N, 2 * G * kh * kw, h, w) in pixels and
mask (N, G * kh * kw, h, w).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

OUTSIDE = 1e6  # an offset, in pixels, that leaves every feature map
# mmcv's two ways to name stride, padding and dilation.
GEOMETRY = ("dH", "dW", "padH", "padW", "dilationH", "dilationW")
GEOMETRY_2 = ("stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w")


def at_least_float(x: Tensor) -> Tensor:
    """Return a tensor in float32 if it is in half precision, which the CPU kernels lack."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def deform_conv_forward(*tensors: Tensor, **options: Any) -> None:
    """Write the deformable convolution of x (arXiv 1703.06211) to `output`."""
    x, weight, offset, output, _, _ = tensors
    output.copy_(convolved(x, weight, offset, None, None, options))


def deform_conv_backward_input(*tensors: Tensor, **options: Any) -> None:
    """Write the gradients of `deform_conv_forward` with respect to x and offset."""
    x, offset, grad_output, grad_x, grad_offset, weight, _ = tensors
    grads = gradients(grad_output, x, weight, offset, None, None, options)
    grad_x.copy_(grads[0])
    grad_offset.copy_(grads[2])


def deform_conv_backward_parameters(*tensors: Tensor, scale: float, **options: Any) -> None:
    """Write the gradient of `deform_conv_forward` with respect to its weight, times `scale`."""
    x, offset, grad_output, grad_weight, _, _ = tensors
    weight = grad_weight  # its shape is all that the gradient of the weight depends on
    grads = gradients(grad_output, x, weight, offset, None, None, options)
    grad_weight.copy_(grads[1] * scale)


def modulated_deform_conv_forward(*tensors: Tensor, with_bias: bool, **options: Any) -> None:
    """Write the deformable convolution whose samples a mask weighs (arXiv 1811.11168)."""
    x, weight, bias, _, offset, mask, output, _ = tensors
    offset, mask = (as_kernels_read(part, output) for part in (offset, mask))
    output.copy_(convolved(x, weight, offset, mask, bias if with_bias else None, options))


def modulated_deform_conv_backward(*tensors: Tensor, with_bias: bool, **options: Any) -> None:
    """Write all gradients of `modulated_deform_conv_forward`."""
    x, weight, bias, _, offset, mask, _, *grads, grad_output = tensors
    grad_x, grad_weight, grad_bias, grad_offset, grad_mask = grads
    offset, mask, grad_offset, grad_mask = (
        as_kernels_read(part, grad_output) for part in (offset, mask, grad_offset, grad_mask)
    )
    used_bias = bias if with_bias else None
    found = gradients(grad_output, x, weight, offset, mask, used_bias, options)
    targets = [grad_x, grad_weight, grad_offset, grad_mask, *([grad_bias] if with_bias else [])]
    for target, grad in zip(targets, found, strict=False):
        target.copy_(grad)


def as_kernels_read(part: Tensor, output: Tensor) -> Tensor:
    """View offsets or a mask as mmcv's kernels read them: flat, for maps of the output's size.

    MMDetection's DyHead hands over some of another size.
    """
    h, w = output.shape[-2:]
    if part.shape[-2:] == (h, w):
        return part
    # (N, C, H, W) -> (N, C * H * W) -> (N, C * h * w) -> (N, C, h, w)
    return part.flatten(1)[:, : part.shape[1] * h * w].view(*part.shape[:2], h, w)


def kernel_args(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    options: dict[str, Any],
) -> list[Any]:
    """Arrange arguments of mmcv's in the order in which torchvision's kernels take them."""
    import torchvision  # noqa: F401  registers its kernels

    x, weight = at_least_float(x), at_least_float(weight)
    # For an offset of NaN mmcv's kernels sample nothing, torchvision's read stray memory.
    offset = at_least_float(offset).nan_to_num(OUTSIDE, OUTSIDE, -OUTSIDE)
    no_mask, no_bias = x.new_zeros(len(x), 1), x.new_zeros(len(weight))
    geometry = GEOMETRY if "dH" in options else GEOMETRY_2
    return [
        *(x, weight, offset),
        no_mask if mask is None else at_least_float(mask),
        no_bias if bias is None else at_least_float(bias),
        *(options[name] for name in (*geometry, "group", "deformable_group")),
        mask is not None,
    ]


def convolved(*args: Any) -> Tensor:
    """Run torchvision's kernel with the `kernel_args` that `args` make."""
    arguments = kernel_args(*args)  # imports torchvision, which brings the kernel
    return torch.ops.torchvision.deform_conv2d(*arguments)


def gradients(grad_output: Tensor, *args: Any) -> Sequence[Tensor]:
    """Compute the gradients with respect to x, weight, offset, mask and bias."""
    grad = at_least_float(grad_output)
    arguments = kernel_args(*args)
    return torch.ops.torchvision._deform_conv2d_backward(grad, *arguments)


DEFORM_OPS = (
    deform_conv_forward,
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    modulated_deform_conv_forward,
    modulated_deform_conv_backward,
)
