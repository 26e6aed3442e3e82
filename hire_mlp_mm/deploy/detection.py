"""Run detectors of MMDetection from image to boxes, by operations that a graph can hold.

The forms here do what the hosts' `predict` does for one image, over the model's own modules and
its own `test_cfg`. `forms` lists the methods of the host that they stand for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.dense_heads import GFLHead
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from . import boxes as b


class Detector(nn.Module):
    """Detect in one image of any size; the parts that both kinds of detectors share."""

    def __init__(self, model: Any, pasted: bool = False) -> None:
        """Take a host's model.

        Args:
            model: a detector.
            pasted: give masks of the image's size as well.
        """
        super().__init__()
        self.model = model
        self.pasted = pasted
        preprocessor = model.data_preprocessor
        self.divisor: int = preprocessor.pad_size_divisor
        self.pad_value: float = preprocessor.pad_value

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Detect.

        Args:
            image: (1, 3, H, W), normalised.

        Returns:
            boxes (n, 4), scores (n,), labels (n,), and of a detector with masks (n, 28, 28), or of
            another size that its head has.
        """
        size = image.shape[2:]
        maps = self.model.extract_feat(self.pad(image))
        return self.detect(maps, size)

    def pad(self, image: Tensor) -> Tensor:
        """Pad an image on the right and below to multiples of the divisor."""
        divisor, (height, width) = self.divisor, image.shape[2:]
        right, below = ((x + divisor - 1) // divisor * divisor - x for x in (width, height))
        return F.pad(image, (0, right, 0, below), value=self.pad_value)

    def detect(self, maps: Sequence[Tensor], size: b.Size) -> tuple[Tensor, ...]:
        """Detect in the maps of a pyramid."""
        raise NotImplementedError


def flat(x: Tensor, channels: int) -> Tensor:
    """Bring a map (1, places * channels, H, W) into the shape (H * W * places, channels)."""
    return x[0].permute(1, 2, 0).reshape(-1, channels)


def scores_of(head: Any, logits: Tensor) -> Tensor:
    """Return scores (n, classes) of logits (n, channels), without the background's."""
    return logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[:, :-1]


def priors_of(head: Any, maps: Sequence[Tensor]) -> list[Tensor]:
    """Make a head's anchors or points for maps of these sizes."""
    sizes = [x.shape[2:] for x in maps]
    found: list[Tensor] = head.prior_generator.grid_priors(
        sizes, dtype=maps[0].dtype, device=maps[0].device
    )
    return found


def joined(levels: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Join what was found on each level."""
    return [torch.cat(parts) for parts in zip(*levels, strict=True)]


class OneStage(Detector):
    """Detect as a SingleStageDetector."""

    def detect(self, maps: Sequence[Tensor], size: b.Size) -> tuple[Tensor, ...]:
        """Detect in the maps of a pyramid; see `Detector.forward` for what comes out."""
        head: Any = self.model.bbox_head
        cfg = head.test_cfg
        outputs = head(maps)  # classes and boxes, and of some heads a factor of the scores
        strides = head.prior_generator.strides
        levels = zip(priors_of(head, outputs[0]), strides, *outputs, strict=True)
        scores, labels, priors, offsets = joined([choose(head, cfg, *level) for level in levels])
        boxes = b.decode(head.bbox_coder, priors, offsets, size)
        kept = b.large_enough(boxes, cfg)
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        kept = b.suppress(boxes, scores, labels, cfg)
        return boxes[kept], scores[kept], labels[kept]


def choose(
    head: Any,
    cfg: Any,
    priors: Tensor,
    stride: tuple[int, int],
    classes: Tensor,
    offsets: Tensor,
    factor: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Choose the best places of a level; return their scores, labels, priors and offsets."""
    scores = scores_of(head, flat(classes, head.cls_out_channels))
    count, scores = scores.shape[1], scores.flatten()
    index = b.where(scores > cfg.get("score_thr", 0))  # 0 is the host's own, too
    index = index[b.best(scores[index], cfg.nms_pre)]
    place, label, score = index // count, index % count, scores[index]
    if isinstance(head, GFLHead):
        # A distribution over distances, in strides, from the centre of the anchor.
        offsets = head.integral(flat(offsets, 4 * (head.reg_max + 1))) * stride[0]
        priors = (priors[:, :2] + priors[:, 2:]) / 2
    else:
        offsets = flat(offsets, 4)
    if factor is not None:
        score = score * flat(factor, 1)[place, 0].sigmoid()
    return score, label, priors[place], offsets[place]


class TwoStage(Detector):
    """Detect as a TwoStageDetector: proposals, then the heads of one stage or of a cascade."""

    def detect(self, maps: Sequence[Tensor], size: b.Size) -> tuple[Tensor, ...]:
        """Detect in the maps of a pyramid; see `Detector.forward` for what comes out."""
        heads: Any = self.model.roi_head
        boxes, scores, labels = self.find_boxes(maps, self.propose(maps, size), size)
        if not heads.with_mask:
            return boxes, scores, labels
        masks = self.find_masks(maps, boxes, labels)
        if not self.pasted:
            return boxes, scores, labels, masks
        pasted = b.paste(masks, boxes, size) >= heads.test_cfg.mask_thr_binary
        return boxes, scores, labels, masks, pasted.to(torch.uint8)

    def propose(self, maps: Sequence[Tensor], size: b.Size) -> Tensor:
        """Propose boxes (n, 4), as an RPNHead."""
        head: Any = self.model.rpn_head
        cfg = head.test_cfg
        classes, offsets = head(maps)
        found = []
        levels = zip(priors_of(head, classes), classes, offsets, strict=True)
        for level, (priors, logits, offset) in enumerate(levels):
            scores = scores_of(head, flat(logits, head.cls_out_channels))[:, 0]
            index = b.best(scores, cfg.nms_pre)
            numbers = torch.full_like(index, level)
            found.append((scores[index], numbers, priors[index], flat(offset, 4)[index]))
        scores, numbers, priors, chosen = joined(found)
        boxes = b.decode(head.bbox_coder, priors, chosen, size)
        kept = b.large_enough(boxes, cfg)
        boxes, scores, numbers = boxes[kept], scores[kept], numbers[kept]
        return boxes[b.suppress(boxes, scores, numbers, cfg)]

    def find_boxes(
        self, maps: Sequence[Tensor], boxes: Tensor, size: b.Size
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Classify and refine proposals, stage after stage: boxes, scores, labels."""
        owner: Any = self.model.roi_head
        stages = list(zip(several(owner.bbox_head), several(owner.bbox_roi_extractor), strict=True))
        logits = []
        for head, extractor in stages:
            features, extra = extract(extractor, maps, boxes)
            classes, offsets = (x[:-extra] for x in head(features))
            logits.append(classes)
            if len(logits) < len(stages):
                boxes = refine(head, boxes, classes[:, :-1].argmax(1), offsets, size)
        scores = (sum(logits) / float(len(stages))).softmax(-1)[:, :-1]
        count, scores = scores.shape[1], scores.flatten()
        index = b.where(scores > owner.test_cfg.score_thr)
        place, labels, scores = index // count, index % count, scores[index]
        boxes = refine(head, boxes[place], labels, offsets[place], size)
        kept = b.suppress(boxes, scores, labels, owner.test_cfg)
        return boxes[kept], scores[kept], labels[kept]

    def find_masks(self, maps: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Give masks (n, h, w), probabilities; of a cascade their mean over the stages."""
        owner: Any = self.model.roi_head
        found = []
        stages = zip(several(owner.mask_head), several(owner.mask_roi_extractor), strict=True)
        for head, extractor in stages:
            features, extra = extract(extractor, maps, boxes)
            logits = head(features)[:-extra]
            found.append(logits[:, 0] if head.class_agnostic else of_class(logits, labels))
        total: Tensor = sum(x.sigmoid() for x in found)  # type: ignore[assignment]
        return total / float(len(found))


def several(parts: Any) -> list[Any]:
    """Return the parts of the stages of a cascade, or the only one, in a list."""
    return list(parts) if isinstance(parts, nn.ModuleList) else [parts]


def of_class(x: Tensor, labels: Tensor) -> Tensor:
    """Choose the class of each of x (n, classes, ...) by labels (n,): (n, ...)."""
    place = torch.arange(labels.shape[0], device=labels.device) * x.shape[1] + labels
    return x.flatten(0, 1)[place]  # OpenVINO refuses `gather` here


def refine(head: Any, boxes: Tensor, labels: Tensor, offsets: Tensor, size: b.Size) -> Tensor:
    """Refine boxes (n, 4) by a head's offsets (n, 4), or (n, 4 * classes)."""
    if not head.reg_class_agnostic:
        offsets = of_class(offsets.unflatten(1, (-1, 4)), labels)
    return b.decode(head.bbox_coder, boxes, offsets, size)


def extract(extractor: Any, maps: Sequence[Tensor], boxes: Tensor) -> tuple[Tensor, int]:
    """Pool the features of boxes (n, 4) from the level of the pyramid that suits each.

    Returns:
        features (n + k, C, h, w), and k, the number of fillers at their end: one for each level,
        so that no level and no batch is empty, for which the heads would need a graph of their own.
    """
    maps = maps[: extractor.num_inputs]
    rois = F.pad(boxes, (1, 0))  # the index of the image comes first
    levels = extractor.map_roi_levels(rois, len(maps))
    count, filler = rois.shape[0], rois.new_tensor([[0, 0, 0, 1, 1]])
    pooled, places = [], []
    for level, (features, layer) in enumerate(zip(maps, extractor.roi_layers, strict=True)):
        index = b.where(levels == level)
        places += [index, index.new_full((1,), count + level)]
        chosen = torch.cat([rois[index], filler])
        options = (layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned)
        pooled.append(roi_align(features, chosen, *options))
    place = torch.cat(places)
    # Where each box, in the order given, lies among what was pooled.
    order = torch.arange(place.shape[0], device=place.device)
    found = place.new_zeros(count + len(maps)).scatter(0, place, order)
    return torch.cat(pooled)[found], len(maps)
