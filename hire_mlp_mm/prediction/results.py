"""Turn the hosts' data samples into plain results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..errors import UserError

FIRST = 5  # classes of a classifier
NO_CLASS = 65535  # of a pixel, where classes were chosen and its own is another


@dataclass
class Choice:
    """Say what is wanted of the predictions.

    Attributes:
        score_thr: the least score of a box.
        labels: the only ones wanted; None for all.
    """

    score_thr: float
    labels: list[int] | None

    def has(self, labels: torch.Tensor) -> torch.Tensor:
        """Tell which of some labels are wanted."""
        if self.labels is None:
            return torch.ones_like(labels, dtype=torch.bool)
        return torch.isin(labels, torch.tensor(self.labels))


def pick(sample: Any, choice: Choice) -> Any:
    """Leave in a data sample what is wanted of it, the best first, scores and boxes in float32.

    Raises:
        UserError: it holds none of the predictions that there are results for.
    """
    if "pred_instances" in sample:
        found = sample.pred_instances
        for key, value in list(found.items()):
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                setattr(found, key, value.float())
        found = found[(found.scores >= choice.score_thr) & choice.has(found.labels)]
        sample.pred_instances = found[found.scores.argsort(descending=True, stable=True)]
    elif "pred_sem_seg" in sample:
        sample.pop("seg_logits", None)  # a map for each class
        labels = sample.pred_sem_seg.data
        sample.pred_sem_seg.data = labels.masked_fill(~choice.has(labels), NO_CLASS)
    elif "pred_score" in sample:
        scores = sample.pred_score.float()
        wanted = choice.has(torch.arange(len(scores)))
        sample.set_pred_score(scores)
        sample.set_pred_label(scores.masked_fill(~wanted, -torch.inf).argmax().reshape(1))
    else:
        kinds = ", ".join(key for key in sample.all_keys() if key.startswith("pred")) or "nothing"
        raise UserError(f"the model gives {kinds}; expected boxes, a map of classes, or a class")
    return sample


def results_of(sample: Any, classes: list[str], choice: Choice) -> Any:
    """Return the results of a data sample that `pick` has made; see `predictor.Prediction`."""
    if "pred_instances" in sample:
        return instances(sample.pred_instances, classes)
    if "pred_sem_seg" in sample:
        return label_map(sample.pred_sem_seg.data, len(classes))
    return first_classes(sample.pred_score, classes, choice)


def instances(found: Any, classes: list[str]) -> list[dict[str, Any]]:
    """List boxes, and masks where there are any, as results in COCO's format.

    A category's id is its label + 1.
    """
    masks = encode(found.masks) if "masks" in found else []
    results = []
    for i, box in enumerate(corners(found).tolist()):
        label, score = int(found.labels[i]), round(float(found.scores[i]), 5)
        x1, y1, x2, y2 = box
        result: dict[str, Any] = dict(category_id=label + 1, category_name=classes[label])
        result["score"] = score
        result["bbox"] = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
        results.append(result | (dict(segmentation=masks[i]) if masks else {}))
    return results


def corners(found: Any) -> torch.Tensor:
    """Return boxes (N, 4) as x1, y1, x2, y2; those of the masks where a model gives no others."""
    if "masks" in found and not ("bboxes" in found and found.bboxes.any()):
        from mmdet.structures.mask import mask2bbox

        return mask2bbox(torch.as_tensor(found.masks))
    return found.bboxes


def encode(masks: Any) -> list[dict[str, Any]]:
    """Encode masks (N, H, W) as COCO's run lengths, in text that JSON can hold."""
    from mmdet.structures.mask import encode_mask_results

    encoded = encode_mask_results(np.asarray(masks, dtype=bool))
    return [dict(size=rle["size"], counts=rle["counts"].decode()) for rle in encoded]


def label_map(labels: torch.Tensor, count: int) -> np.ndarray:
    """Return labels (H, W) of (1, H, W), in uint8 if `count` classes leave its largest number."""
    array = labels[0].numpy()
    if count <= 255:
        return np.where(array < count, array, 255).astype(np.uint8)
    return np.where(array < count, array, NO_CLASS).astype(np.uint16)


def first_classes(scores: torch.Tensor, classes: list[str], choice: Choice) -> list[dict[str, Any]]:
    """List the best of the classes that are wanted, a dict with label, class and score each."""
    wanted = choice.has(torch.arange(len(scores))).nonzero()[:, 0]
    order = wanted[scores[wanted].argsort(descending=True, stable=True)][:FIRST]
    named = [(label, classes[label], scores[label].item()) for label in order.tolist()]
    return [{"label": i, "class": name, "score": round(score, 5)} for i, name, score in named]
