"""Choose and decode boxes by operations that a graph holds for images of every size.

What `nonzero` finds has a length that no graph knows beforehand. A graph may hold such lengths as
long as no step of Python asks for them: hence the fillers and the selections by index.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from mmdet.models.task_modules import DeltaXYWHBBoxCoder
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms as suppress_in_one

Size = Any  # (height, width) of the image, in whole numbers that may be free

NO_SCORE = -1.0  # of a filler
RATIO = abs(math.log(16 / 1000))  # to which mmdet limits a box's growth: the default of delta2bbox


def where(condition: Tensor) -> Tensor:
    """Return the indices (k,) at which a condition (n,) holds."""
    return condition.nonzero().squeeze(1)


def best(scores: Tensor, limit: int) -> Tensor:
    """Return the indices of the `limit` highest scores (n,), the highest first; all if n is less.

    Raises no length to `limit`: fillers take part, and are left out.
    """
    filled = torch.cat([scores, scores.new_full((limit,), NO_SCORE)])
    found, index = filled.topk(limit)
    return index[where(found > NO_SCORE)]


def first(x: Tensor, limit: int) -> Tensor:
    """Return the first `limit` of x (n, ...), or all."""
    return x[where(torch.arange(x.shape[0], device=x.device) < limit)]


def large_enough(boxes: Tensor, cfg: Any) -> Tensor:
    """Return the indices of boxes (n, 4) whose sides are longer than `min_bbox_size`, or of all."""
    smallest = cfg.get("min_bbox_size", -1)
    smallest = smallest if smallest >= 0 else -math.inf
    return where((boxes[:, 2:] - boxes[:, :2] > smallest).all(1))


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, cfg: Any) -> Tensor:
    """Return the indices of the boxes that non-maximum suppression leaves, the best first.

    Each group (a class, or a level of the pyramid) is suppressed for itself, as by mmcv's
    `batched_nms`: its boxes are moved to where those of no other group are.

    Args:
        boxes, scores, groups: (n, 4), (n,) and (n,).
        cfg: has `nms` and `max_per_img`.
    """
    count = boxes.shape[0]
    # torchvision tells torch.export that two boxes are left, or more: here are two without extent.
    boxes, scores = F.pad(boxes, (0, 0, 0, 2)), F.pad(scores, (0, 2), value=NO_SCORE)
    if not cfg.nms.get("class_agnostic", False):
        offsets = F.pad(groups, (0, 2)).to(boxes) * (boxes.max() + 1)
        boxes = boxes + offsets[:, None]
    kept = suppress_in_one(boxes, scores, cfg.nms.iou_threshold)
    return first(kept[where(kept < count)], cfg.max_per_img)


def decode(coder: Any, priors: Tensor, predicted: Tensor, size: Size) -> Tensor:
    """Decode what a head predicts into boxes (n, 4): x1, y1, x2, y2, in pixels.

    Args:
        coder: mmdet's DeltaXYWHBBoxCoder or DistancePointBBoxCoder.
        priors: anchors (n, 4), or points (n, 2 or more).
        predicted: (n, 4).
        size: of the image, to whose border boxes are clipped.
    """
    change = from_deltas if isinstance(coder, DeltaXYWHBBoxCoder) else from_distances
    boxes = change(coder, priors, predicted)
    if not coder.clip_border:
        return boxes
    height, width = (torch.scalar_tensor(side, dtype=boxes.dtype) for side in size)
    return torch.minimum(boxes.clamp(min=0), torch.stack([width, height, width, height]))


def from_deltas(coder: Any, anchors: Tensor, deltas: Tensor) -> Tensor:
    """Move and stretch anchors (n, 4) by deltas (n, 4) of their centres and sides."""
    deltas = deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)
    centre = (anchors[:, :2] + anchors[:, 2:]) * 0.5
    sides = anchors[:, 2:] - anchors[:, :2]
    step, growth = sides * deltas[:, :2], deltas[:, 2:].clamp(max=RATIO)
    if coder.add_ctr_clamp:
        step = step.clamp(-coder.ctr_clamp, coder.ctr_clamp)
    else:
        growth = growth.clamp(min=-RATIO)
    centre, half = centre + step, sides * growth.exp() * 0.5
    return torch.cat([centre - half, centre + half], 1)


def from_distances(coder: Any, points: Tensor, distances: Tensor) -> Tensor:
    """Draw boxes around points (n, 2) by their distances (n, 4) to left, top, right and bottom."""
    return torch.cat([points[:, :2] - distances[:, :2], points[:, :2] + distances[:, 2:]], 1)


def paste(masks: Tensor, boxes: Tensor, size: Size) -> Tensor:
    """Paste masks into their boxes, bilinearly, as mmdet does: by a product for each axis.

    Args:
        masks: (n, h, w), probabilities.
        boxes: (n, 4).
        size: of the image.

    Returns:
        (n, height, width), zero outside the boxes.
    """
    height, width = size
    rows = spread(boxes[:, 1], boxes[:, 3], height, masks.shape[1])
    columns = spread(boxes[:, 0], boxes[:, 2], width, masks.shape[2])
    return rows @ masks @ columns.transpose(1, 2)


def spread(start: Tensor, end: Tensor, size: Any, cells: int) -> Tensor:
    """Make (n, size, cells): the part in each pixel of cells from `start` to `end` (n,)."""
    pixel = torch.arange(size, device=start.device) + 0.5
    share = (pixel - start[:, None]) / (end - start)[:, None]
    share = torch.where(share.isinf(), 0.5, share)  # of a box without extent, as mmdet
    cell = torch.arange(cells, device=start.device)
    return (1 - (share[..., None] * cells - 0.5 - cell).abs()).clamp(min=0)
