"""torchvision's kernels behind `mmcv.ops` where mmcv has no compiled ones (mmcv-lite).

MMDetection imports `mmcv._ext`, mmcv's compiled module, as soon as it is imported; mmcv-lite has
none, and no wheel of mmcv with ops exists for today's torch. Importing this module offers Python
a stand-in for `mmcv._ext`, to be taken only if the import system finds no compiled one: where
compiled ops exist, nothing is touched. Import it before mmdet, or name it in a config's
`custom_imports`.

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

EXT = "mmcv._ext"


class MissingOpError(RuntimeError):
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
