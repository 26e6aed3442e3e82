"""Offer torchvision's kernels behind `mmcv.ops` where mmcv has no compiled ones (mmcv-lite).

MMDetection imports `mmcv._ext`, mmcv's compiled module, as soon as it is imported itself. mmcv-lite
has none, and no wheel of mmcv with ops exists for today's torch. Importing this package, where
mmengine is installed, offers Python a stand-in, which is taken only if no compiled `mmcv._ext` is
found. Import the package before mmdet, or name it in a config's `custom_imports`.

The stand-in has the ops of the common detectors; of RoIAlign on a CPU it has its own. Any other op
raises `MissingOpError` when it is called, not when it is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor

from . import roi_align
from .deform_ops import DEFORM_OPS, at_least_float
from .errors import UserError

EXT = "mmcv._ext"


class MissingOpError(UserError, RuntimeError):
    """Report an op of mmcv that neither compiled code nor torchvision provides."""


def missing_op(name: str) -> NoReturn:
    """Raise the error for an op that the stand-in lacks."""
    raise MissingOpError(
        f"mmcv op {name} needs compiled mmcv, and torchvision has no such kernel: build mmcv with "
        f"its ops (uninstall mmcv-lite, then MMCV_WITH_OPS=1 pip install mmcv "
        f"--no-build-isolation), or use a model without it"
    )


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Choose boxes by non-maximum suppression.

    Args:
        boxes: (N, 4) corners x1, y1, x2, y2 in pixels.
        scores: (N,).
        iou_threshold: a box that overlaps a better one by more is dropped.
        offset: 1 where a box includes its last pixel, so that its width is x2 - x1 + 1.

    Returns:
        Indices of the boxes that are kept, by falling score.
    """
    from torchvision.ops import nms as kernel

    boxes, scores = at_least_float(boxes), at_least_float(scores)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return kernel(boxes, scores.to(boxes.dtype), iou_threshold)


def roi_align_forward(
    features: Tensor, rois: Tensor, output: Tensor, *argmax: Tensor, **options: Any
) -> None:
    """Write RoIAlign of (N, C, H, W) at (K, 5) RoIs to `output` (K, C, h, w).

    Raises:
        MissingOpError: max pooling, which torchvision lacks.
    """
    if options["pool_mode"] != 1:
        missing_op("roi_align with pool_mode='max'")
    import torchvision  # noqa: F401  registers its kernels

    x = at_least_float(features)
    rois, size = rois.to(x.dtype), output.shape[2:]
    scale, ratio, aligned = (options[n] for n in ("spatial_scale", "sampling_ratio", "aligned"))
    bins, others = roi_align.split(x, rois, scale, size, ratio, aligned)
    if bins is not None:
        roi_align.align(x, bins, output)
    if others is not None:
        kernel = torch.ops.torchvision.roi_align
        output[others] = kernel(x, rois[others], scale, *size, ratio, aligned).to(output.dtype)


def roi_align_backward(
    grad_output: Tensor, rois: Tensor, *argmax_and_grad: Tensor, **options: Any
) -> None:
    """Write the gradient of `roi_align_forward` with respect to its features."""
    import torchvision  # noqa: F401  registers its kernels

    grad, grad_features = at_least_float(grad_output), argmax_and_grad[-1]
    rois, size = rois.to(grad.dtype), grad.shape[2:]
    scale, ratio, aligned = (options[n] for n in ("spatial_scale", "sampling_ratio", "aligned"))
    bins, others = roi_align.split(grad_features, rois, scale, size, ratio, aligned)
    if others is not None:
        kernel = torch.ops.torchvision._roi_align_backward
        sizes = (*size, *grad_features.shape)
        grad_features.copy_(kernel(grad[others], rois[others], scale, *sizes, ratio, aligned))
    if bins is not None:
        roi_align.add_gradient(grad, bins, grad_features)


OPS: dict[str, Callable[..., object]] = {
    **{op.__name__: op for op in (nms, roi_align_forward, roi_align_backward, *DEFORM_OPS)},
    # For mmcv's report on its environment.
    "get_compiler_version": lambda: "none (torchvision's kernels)",
    "get_compiling_cuda_version": lambda: torch.version.cuda or "none",
}


class StandIn(ModuleType):
    """Stand in for `mmcv._ext` with the ops above; all others exist and raise when called."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: missing_op(name)


class StandInFinder(MetaPathFinder, Loader):
    """Find `mmcv._ext` when nobody else does."""

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
    """Say in a line for the log which ops mmcv runs on."""
    import mmcv

    spec = find_spec(EXT)
    if spec is None or not isinstance(spec.loader, StandInFinder):
        return f"mmcv {mmcv.__version__}: compiled ops"
    import torchvision

    return f"mmcv {mmcv.__version__}: no compiled ops, torchvision {torchvision.__version__}'s used"


install()
