"""Trace a model into a graph that holds for images of every size."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..host_faults import quiet_resize

symbolic_shapes: Any = _config
LEAST = 32  # pixels
TRACED = (233, 307)  # height and width on which no size of a map is 1, or another's


def can_trace() -> bool:
    """Tell whether this torch can trace a graph whose sizes are free."""
    return hasattr(symbolic_shapes, "backed_size_oblivious")


def trace(
    model: nn.Module, free_batch: bool = True, dtype: torch.dtype = torch.float32
) -> torch.export.ExportedProgram:
    """Trace a copy of a model for any height and width from `LEAST` up.

    Args:
        model: runs from an image (N, 3, H, W) to its outputs.
        free_batch: for any number of images; one alone without it.
        dtype: of the image.
    """
    free = torch.export.Dim.DYNAMIC
    sizes = {2: free(min=LEAST), 3: free(min=LEAST)}
    if free_batch:
        sizes[0] = free(min=1)
    image = torch.randint(0, 256, (1 + free_batch, 3, *TRACED)).to(dtype)
    # A size of 1 is a size like others; without this the graph would exclude it.
    oblivious = symbolic_shapes.patch(backed_size_oblivious=True)
    with quiet_resize(), oblivious, torch.no_grad():
        program = torch.export.export(
            ForAnySize(model).eval(), (image,), dynamic_shapes=(sizes,), strict=False
        )
    # Besides the least sizes, which are kept elsewhere, they say how maps lie in memory, and so
    # refuse those of one pixel, whose numbers are right.
    program._guards_code = []
    return program


class ForAnySize(nn.Module):
    """Copy a model so that its trace holds for every size."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = with_own_upsampling(copy.deepcopy(model))

    def forward(self, image: Tensor) -> Any:
        """Run the model."""
        with AnySize():
            return self.model(image)


class AnySize(TorchFunctionMode):
    """Replace operations that torch.export would settle for the traced size alone.

    How a tensor lies in memory, and whether another shape of it takes a copy, is such a thing: here
    every tensor lies as its shape says, and is copied to that end.
    """

    MOVING = (Tensor.permute, Tensor.transpose)
    PRODUCT = (torch.matmul, Tensor.matmul, Tensor.__matmul__)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.adaptive_avg_pool2d:
            return average_pool(*args, **kwargs)
        if func in self.PRODUCT:
            return product(*args)
        if func is Tensor.contiguous:
            return copied(args[0])
        if func is Tensor.type_as:  # of a type that it has: a weight under a second name
            return args[0].to(args[1].dtype, copy=True)
        if func is Tensor.reshape:
            return copied(args[0]).view(*args[1:])
        out = func(*args, **kwargs)
        return copied(out) if func in self.MOVING else out


def copied(x: Tensor) -> Tensor:
    """Copy a tensor, laid out as its shape says."""
    return x.clone(memory_format=torch.contiguous_format)


def product(x: Tensor, y: Tensor) -> Tensor:
    """Multiply (..., M, K) and (..., K, N), for which `@` would choose a way by their sizes."""
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    shape = (*batch, x.shape[-2], y.shape[-1])
    x, y = (copied(one.expand(*batch, *one.shape[-2:])).flatten(0, -3) for one in (x, y))
    return torch.bmm(x, y).view(shape)


def average_pool(x: Tensor, output_size: Any) -> Tensor:
    """Pool as `F.adaptive_avg_pool2d`, exactly, by a product with a matrix for each axis.

    Args:
        x: (B, C, H, W).
        output_size: h and w, or one number for both.
    """
    h, w = output_size if isinstance(output_size, Sequence) else (output_size, output_size)
    return product(product(averages(h, x.shape[2], x), x), averages(w, x.shape[3], x).t())


def averages(bins: int, size: int, like: Tensor) -> Tensor:
    """Make (bins, size): row i means over floor(i * size / bins) to ceil((i + 1) * size / bins)."""
    position = torch.arange(size, device=like.device)
    i = torch.arange(bins, device=like.device)[:, None]
    # The same limits in whole numbers.
    inside = ((position + 1) * bins > i * size) & (position * bins < (i + 1) * size)
    inside = inside.to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


class Upsample(nn.Module):
    """Stand in for MMSegmentation's `Upsample`, which makes ints of the sizes."""

    def __init__(self, host: Any) -> None:
        super().__init__()
        self.size, self.scale_factor = host.size, host.scale_factor
        self.mode, self.align_corners = host.mode, host.align_corners

    def forward(self, x: Tensor) -> Tensor:
        """Resize (N, C, H, W) to (N, C, h, w)."""
        size = self.size
        if not size and self.scale_factor == int(self.scale_factor):
            size = [s * int(self.scale_factor) for s in x.shape[2:]]
        scale_factor = None if size else self.scale_factor
        return F.interpolate(x, size, scale_factor, self.mode, self.align_corners)


def with_own_upsampling(model: nn.Module) -> nn.Module:
    """Put `Upsample` into a model wherever MMSegmentation's stands, and return the model."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__module__ == "mmseg.models.utils.wrappers":
                setattr(module, name, Upsample(child))
    return model
