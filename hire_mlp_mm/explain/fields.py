"""Measure the effective receptive fields of a backbone, with torch alone.

What a token may depend on, its receptive field, says little, for most of it hardly matters. The
effective one (Luo et al., arXiv 1701.04128) is measured: how strongly each pixel moves the token.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import UserError

CALIBRATED = 8  # photographs that are enough for the BatchNorm statistics of a random network


@dataclass
class Field:
    """Hold how strongly each pixel moves the central token of a map.

    Attributes:
        stride: of the map, in pixels.
        values: (H, W), whose sum is 1.
    """

    stride: int
    values: np.ndarray

    @property
    def centre(self) -> tuple[int, int]:
        """Return y and x of the pixel with half of the field above it, and half to its left."""
        y, x = (int(np.searchsorted(self.values.sum(axis).cumsum(), 0.5 - 1e-6)) for axis in (1, 0))
        return y, x

    def held(self) -> np.ndarray:
        """Return the shares that squares about the centre hold, of 1, 3, 5, ... pixels a side."""
        along = [
            np.abs(np.arange(size) - middle)
            for size, middle in zip(self.values.shape, self.centre, strict=True)
        ]
        far = np.maximum(along[0][:, None], along[1])
        return np.bincount(far.ravel(), self.values.ravel()).cumsum()

    def side(self, share: float) -> int:
        """Return the side in pixels of the square about the centre that holds a share, 0 to 1."""
        return int(2 * np.searchsorted(self.held(), share - 1e-6) + 1)


def receptive_fields(backbone: nn.Module, images: Iterable[Tensor], seed: int = 0) -> list[Field]:
    """Measure how strongly each pixel moves the central token of each map of a backbone.

    That is the absolute gradient of the token's channels, weighted by random numbers, summed over
    the colours and averaged over the images. (The plain sum of the channels will not do: where a
    LayerNorm comes last it is the same for every image, and has no gradient.)

    Args:
        backbone: turns a batch of one image into maps (1, C, h, w); in evaluation mode.
        images: (3, H, W), all of one size, as the backbone takes them.
        seed: of the weights of the channels.

    Returns:
        A field for each map, from the first to the last.

    Raises:
        UserError: there is no image, the backbone gives no maps or cuts their gradients off, or a
            token moves with no pixel.
    """
    generator = torch.Generator().manual_seed(seed)
    sums: list[Tensor] = []
    strides: list[int] = []
    for image in images:
        batch = image[None].detach().requires_grad_()
        with torch.enable_grad():
            maps = list(backbone(batch))
        if any(one.dim() != 4 for one in maps):
            shapes = ", ".join(str(tuple(one.shape)) for one in maps)
            raise UserError(
                f"{type(backbone).__name__} gives {shapes}; expected maps (1, C, h, w), "
                f"whose tokens have receptive fields"
            )
        strides = [round(image.shape[1] / one.shape[2]) for one in maps]
        sums = sums or [torch.zeros(image.shape[1:], dtype=torch.float64) for _ in maps]
        for total, one in zip(sums, maps, strict=True):
            token = one[0, :, one.shape[2] // 2, one.shape[3] // 2]
            weights = torch.randn(len(token), generator=generator).to(token)
            gradient = gradient_of(token @ weights, batch)
            if gradient is None:
                raise UserError(
                    f"{type(backbone).__name__} lets no gradient through to the image, which a "
                    f"receptive field needs; take detach() and no_grad() out of its forward"
                )
            total += gradient[0].abs().sum(0).cpu()
    if not sums:
        raise UserError("no image to measure a receptive field with; name photographs")
    if not all(total.sum() > 0 for total in sums):
        raise UserError("a token at the centre moves with no pixel; are the weights zero?")
    pairs = zip(strides, sums, strict=True)
    return [Field(stride, (total / total.sum()).numpy()) for stride, total in pairs]


def gradient_of(score: Tensor, batch: Tensor) -> Tensor | None:
    """Return the gradient of a score in a batch of images; None where it does not follow them."""
    if not score.requires_grad:
        return None
    return torch.autograd.grad(score, batch, retain_graph=True, allow_unused=True)[0]


def calibrate(net: nn.Module, images: list[Tensor]) -> nn.Module:
    """Give every BatchNorm weight 1 and the statistics of images; end in evaluation mode.

    ResNet begins a training with weights of 0, so that its blocks do nothing at first.
    """
    net.eval()
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        nn.init.ones_(norm.weight)
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all
        norm.train()
    with torch.no_grad():
        for image in images if norms else ():
            net(image[None])
    net.eval()
    return net.requires_grad_(False)
