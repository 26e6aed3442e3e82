"""Compute RoIAlign on a CPU, several times faster than torchvision (docs/performance.md).

Every bin of an RoI is a weighted sum of a few tokens of the map, the same ones for all channels.
So RoIAlign is the product of a sparse matrix (bins, tokens) with the map (tokens, C), and its
gradient that of the transposed matrix. `embedding_bag` is such a product, vectorised and on all
threads; torchvision's kernel walks over the channels one by one, on one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

LARGEST = 16  # tokens along a bin, to which memory is proportional


class Bins(NamedTuple):
    """Hold the weights of tokens in bins, bin after bin.

    Attributes:
        rois: (K,), which RoIs the bins are of, h * w of each.
        starts: (K * h * w,), of each bin's first entry.
        tokens, weights: (entries,).
    """

    rois: Tensor
    starts: Tensor
    tokens: Tensor
    weights: Tensor


def align(x: Tensor, bins: Bins, out: Tensor) -> None:
    """Write the bins of a map (N, C, H, W) to their RoIs in `out`, (all RoIs, C, h, w)."""
    table = x.contiguous(memory_format=torch.channels_last).movedim(1, 3).flatten(0, 2)
    found = weighted_sums(table, bins.tokens, bins.starts, bins.weights)
    h, w = out.shape[2:]
    out[bins.rois] = found.view(-1, h, w, x.shape[1]).movedim(3, 1).to(out.dtype)


def add_gradient(grad_out: Tensor, bins: Bins, grad: Tensor) -> None:
    """Add the gradient of `align` to `grad`, (N, C, H, W)."""
    N, C, H, W = grad.shape
    table = grad_out[bins.rois].movedim(1, 3).reshape(-1, C)
    sizes = F.pad(bins.starts, (0, 1), value=len(bins.tokens)).diff()
    tokens, order = bins.tokens.sort(stable=True)
    starts = torch.searchsorted(tokens, torch.arange(N * H * W))
    rows = torch.arange(len(sizes)).repeat_interleave(sizes)[order]
    found = weighted_sums(table, rows, starts, bins.weights[order])
    grad += found.view(N, H, W, C).movedim(3, 1)


def weighted_sums(table: Tensor, rows: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Add up rows (entries,) of a table (R, C) by weights, from start to start: (starts, C)."""
    return F.embedding_bag(rows, table, starts, mode="sum", per_sample_weights=weights)


def split(
    x: Tensor, rois: Tensor, scale: float, size: Sequence[int], ratio: int, aligned: bool
) -> tuple[Bins | None, Tensor | slice | None]:
    """Weigh the tokens of a map in the bins of RoIs, and tell the RoIs for torchvision's kernel.

    Args:
        x: (N, C, H, W), of which the shape and the device count.
        rois: (K, 5), batch index and corners in pixels of the image.
        scale: of the map to the image.
        size: bins of an RoI, h and w.
        ratio: samples along a bin; 0 for one a token, which is the least that reads them all.
        aligned: whether a token stands for its centre.

    Returns:
        The bins, or None where there are none; and a mask (K,) of RoIs that are left out: empty,
        infinite, or very large; None where there are none, and on a GPU a slice of all of them.
    """
    if x.device.type != "cpu":
        return None, slice(None)  # at once: a question to the RoIs would wait for the device
    # (K, 2), height before width
    low, high = rois[:, 1:3].flip(1) * scale, rois[:, 3:5].flip(1) * scale
    low, high = (corner - 0.5 if aligned else corner for corner in (low, high))
    extent = high - low if aligned else (high - low).clamp(min=1)
    steps = extent / extent.new_tensor(size)
    grid = torch.full_like(steps, ratio) if ratio > 0 else steps.ceil()
    usual = ((steps > 0) & (steps <= LARGEST)).all(1)
    reach = (steps * (grid - 1) / grid).ceil()  # tokens from a bin's first sample to its last
    kinds = (reach[:, 0] * (LARGEST + 2) + reach[:, 1]).where(usual, torch.nan)
    others = None if usual.all() else ~usual
    found = []
    for kind in kinds[usual].unique():
        chosen = (kinds == kind).nonzero()[:, 0]
        axes = [
            weigh(low[chosen, i], steps[chosen, i], size[i], *parts, x.shape[2 + i])
            for i, parts in enumerate(zip(grid[chosen[0]], reach[chosen[0]], strict=True))
        ]
        found.append((chosen, *outer(axes, rois[chosen, 0].long(), x.shape)))
    if not found:
        return None, others
    chosen, sizes, tokens, weights = map(torch.cat, zip(*found, strict=True))
    return Bins(chosen, sizes.cumsum(0) - sizes, tokens, weights), others


def weigh(
    low: Tensor, step: Tensor, count: int, grid: Tensor, reach: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Weigh tokens along an axis, as linear interpolation at the samples of each bin does.

    Args:
        low, step: (K,), where RoIs begin, and how long their bins are, in tokens.
        count: bins of an RoI.
        grid: samples of a bin.
        reach: tokens from its first sample to its last one, rounded up.
        size: tokens of the map; a sample more than one beyond it is 0.

    Returns:
        Indices of tokens, and their weights, each (K, count, reach + 2).
    """
    step = step[:, None, None]
    within = (torch.arange(int(grid)) + 0.5) * step / grid
    at = low[:, None, None] + torch.arange(count)[:, None] * step + within
    share = ((at >= -1) & (at <= size)) / grid
    at = at.clamp(0, size - 1)
    before = at.floor()
    second = at - before
    first = before[..., :1]
    place = (before - first).long()
    weights = at.new_zeros(*at.shape[:2], int(reach) + 3)
    weights.scatter_add_(2, place, (1 - second) * share)
    weights.scatter_add_(2, place + 1, second * share)
    tokens = first.long() + torch.arange(int(reach) + 2)
    return tokens.clamp(max=size - 1), weights[..., :-1]


def outer(
    axes: list[tuple[Tensor, Tensor]], images: Tensor, shape: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Put both axes together: entries of each bin, and all of their tokens and weights."""
    (rows, by_row), (columns, by_column) = axes
    # (K, h, w, a, b) of (K, h, a) and (K, w, b)
    rows = images[:, None, None] * shape[2] + rows
    tokens = rows[:, :, None, :, None] * shape[3] + columns[:, None, :, None, :]
    weights = by_row[:, :, None, :, None] * by_column[:, None, :, None, :]
    sizes = torch.full((tokens.shape[:3].numel(),), tokens.shape[3:].numel())
    return sizes, tokens.flatten(), weights.flatten()
