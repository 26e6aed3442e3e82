"""torchvision's kernels behind `mmcv.ops` where mmcv has no compiled ones (mmcv-lite).

MMDetection imports `mmcv._ext`, mmcv's compiled module, as soon as it is imported; mmcv-lite has
none, and no wheel of mmcv with ops exists for today's torch. Importing the package, where mmengine
is installed, offers Python a stand-in for `mmcv._ext`, to be taken only if the import system finds
no compiled one: where compiled ops exist, nothing is touched. Import it before mmdet, or name it in
a config's `custom_imports`.

The stand-in has the ops of the common detectors. Any other raises `MissingOpError` when it is
called, not when it is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import NoReturn

import torch
from torch import Tensor

from .errors import UserError

EXT = "mmcv._ext"
OUTSIDE = 1e6  # an offset, in pixels, that leaves every feature map


class MissingOpError(UserError, RuntimeError):
    """An op of mmcv that neither compiled code nor torchvision provides."""


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices that non-maximum suppression keeps, by falling score.

    Args:
        boxes: (N, 4) corners x1, y1, x2, y2 in pixels.
        scores: (N,).
        iou_threshold: boxes overlapping a better one by more are dropped.
        offset: 1 where a box includes its last pixel, so that its width is x2 - x1 + 1.
    """
    from torchvision.ops import nms as kernel

    boxes, scores = at_least_float(boxes), at_least_float(scores)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return kernel(boxes, scores.to(boxes.dtype), iou_threshold)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign of (N, C, H, W) at (K, 5) RoIs, written to `output` (K, C, h, w).

    Raises:
        MissingOpError: max pooling, which torchvision lacks.
    """
    if pool_mode != 1:
        missing_op("roi_align with pool_mode='max'")
    _load_torchvision()
    features = at_least_float(input)
    pooled = torch.ops.torchvision.roi_align(
        features,
        rois.to(features.dtype),
        spatial_scale,
        aligned_height,
        aligned_width,
        sampling_ratio,
        aligned,
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of `roi_align_forward` with respect to its input, written to `grad_input`."""
    _load_torchvision()
    grad = at_least_float(grad_output)
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad,
            rois.to(grad.dtype),
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    *,
    im2col_step: int,
    **geometry: int,
) -> None:
    """Deformable convolution of (N, C, H, W), offsets (N, 2 * groups * kh * kw, h, w).

    `geometry` has mmcv's names: kW, kH, dW, dH, padW, padH, dilationW, dilationH, group,
    deformable_group. Written to `output` (N, O, h, w).
    """
    output.copy_(_deform_conv(input, weight, offset, None, None, _geometry(geometry)))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    *,
    im2col_step: int,
    **geometry: int,
) -> None:
    """Gradient of `deform_conv_forward` with respect to its input and offsets."""
    grads = _deform_conv_backward(
        grad_output, input, weight, offset, None, None, _geometry(geometry)
    )
    grad_input.copy_(grads[0])
    grad_offset.copy_(grads[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    *,
    scale: float,
    im2col_step: int,
    **geometry: int,
) -> None:
    """Gradient of `deform_conv_forward` with respect to its weight, times `scale`."""
    weight = grad_weight  # its shape is all that the gradient of the weight depends on
    grads = _deform_conv_backward(
        grad_output, input, weight, offset, None, None, _geometry(geometry)
    )
    grad_weight.copy_(grads[1] * scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *,
    with_bias: bool,
    **geometry: int,
) -> None:
    """Deformable convolution, version 2: a mask (N, groups * kh * kw, h, w) weighs the samples.

    `geometry` has mmcv's names: kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h,
    dilation_w, group, deformable_group. Written to `output` (N, O, h, w).
    """
    used = bias if with_bias else None
    offset, mask = (_as_read(x, output) for x in (offset, mask))
    output.copy_(_deform_conv(input, weight, offset, mask, used, _geometry_v2(geometry)))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    *,
    with_bias: bool,
    **geometry: int,
) -> None:
    """Gradients of `modulated_deform_conv_forward`."""
    offset, mask = (_as_read(x, grad_output) for x in (offset, mask))
    grad_offset, grad_mask = (_as_read(x, grad_output) for x in (grad_offset, grad_mask))
    used = bias if with_bias else None
    grads = _deform_conv_backward(
        grad_output, input, weight, offset, mask, used, _geometry_v2(geometry)
    )
    into = (grad_input, grad_weight, grad_offset, grad_mask, grad_bias)
    for target, grad in zip(into[: 5 if with_bias else 4], grads, strict=False):
        target.copy_(grad)


Geometry = tuple[int, int, int, int, int, int, int, int]


def _geometry(by_name: dict[str, int]) -> Geometry:
    """Stride, padding, dilation (height, width), groups, offset groups from deform_conv's names."""
    names = ("dH", "dW", "padH", "padW", "dilationH", "dilationW", "group", "deformable_group")
    return tuple(by_name[name] for name in names)  # type: ignore[return-value]


def _geometry_v2(by_name: dict[str, int]) -> Geometry:
    """The same from modulated_deform_conv's names."""
    names = ("stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w")
    return tuple(by_name[name] for name in (*names, "group", "deformable_group"))  # type: ignore[return-value]


def _as_read(x: Tensor, output: Tensor) -> Tensor:
    """Offsets or a mask as mmcv's kernels read them: flat, for maps of the output's size.

    That matters where they have another size, as MMDetection's DyHead hands them over.
    """
    h, w = output.shape[-2:]
    if x.shape[-2:] == output.shape[-2:]:
        return x
    # (N, C, H, W) -> (N, C * H * W) -> (N, C * h * w) -> (N, C, h, w)
    return x.flatten(1)[:, : x.shape[1] * h * w].view(*x.shape[:2], h, w)


def _numbers(offset: Tensor) -> Tensor:
    """Offsets without NaN: mmcv's kernels sample nothing there, torchvision's read stray memory."""
    return at_least_float(offset).nan_to_num(OUTSIDE, OUTSIDE, -OUTSIDE)


def _deform_conv(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    geometry: Geometry,
) -> Tensor:
    """Run torchvision's kernel; without mask or bias it wants empty ones."""
    _load_torchvision()
    x, w, o = at_least_float(input), at_least_float(weight), _numbers(offset)
    m = x.new_zeros(len(x), 1) if mask is None else at_least_float(mask)
    b = x.new_zeros(len(w)) if bias is None else at_least_float(bias)
    return torch.ops.torchvision.deform_conv2d(x, w, o, m, b, *geometry, mask is not None)


def _deform_conv_backward(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    geometry: Geometry,
) -> Sequence[Tensor]:
    """Gradients of input, weight, offset, mask and bias."""
    _load_torchvision()
    g, x, w, o = (
        at_least_float(grad),
        at_least_float(input),
        at_least_float(weight),
        _numbers(offset),
    )
    m = x.new_zeros(len(x), 1) if mask is None else at_least_float(mask)
    b = x.new_zeros(len(w)) if bias is None else at_least_float(bias)
    return torch.ops.torchvision._deform_conv2d_backward(
        g, x, w, o, m, b, *geometry, mask is not None
    )


def get_compiler_version() -> str:
    """What mmcv's environment report shows as compiler."""
    return "none (torchvision's kernels)"


def get_compiling_cuda_version() -> str:
    """What mmcv's environment report shows as CUDA version."""
    return torch.version.cuda or "none"


OPS: dict[str, Callable[..., object]] = {
    op.__name__: op
    for op in (
        nms,
        roi_align_forward,
        roi_align_backward,
        deform_conv_forward,
        deform_conv_backward_input,
        deform_conv_backward_parameters,
        modulated_deform_conv_forward,
        modulated_deform_conv_backward,
        get_compiler_version,
        get_compiling_cuda_version,
    )
}


def at_least_float(x: Tensor) -> Tensor:
    """`x`, in float32 if it was in half precision, which torchvision's CPU kernels lack."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _load_torchvision() -> None:
    """Register `torch.ops.torchvision`."""
    import torchvision  # noqa: F401


def missing_op(name: str) -> NoReturn:
    """Raise the error for an op that the stand-in lacks."""
    raise MissingOpError(
        f"mmcv op {name} needs compiled mmcv, and torchvision has no such kernel: build mmcv with "
        f"its ops (uninstall mmcv-lite, then MMCV_WITH_OPS=1 pip install mmcv "
        f"--no-build-isolation), or use a model without it"
    )


class StandIn(ModuleType):
    """`mmcv._ext` with the ops above; every other one exists and raises when called."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: missing_op(name)


class StandInFinder(MetaPathFinder, Loader):
    """Finds `mmcv._ext` when nobody else does."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, self, origin="torchvision") if name == EXT else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(OPS)


def install() -> None:
    """Offer the stand-in to the import system, last in line. Idempotent."""
    if not any(isinstance(finder, StandInFinder) for finder in sys.meta_path):
        sys.meta_path.append(StandInFinder())


def describe() -> str:
    """One line for the log: which ops mmcv runs on."""
    import mmcv

    spec = find_spec(EXT)
    if spec is None or not isinstance(spec.loader, StandInFinder):
        return f"mmcv {mmcv.__version__}: compiled ops"
    import torchvision

    return f"mmcv {mmcv.__version__}: no compiled ops, torchvision {torchvision.__version__}'s used"


install()
