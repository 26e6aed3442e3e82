"""Turn boxes, labels and scores into plain results, whatever has predicted them. Numpy alone."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UserError

SCORE_THR = 0.3
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

    def has(self, labels: np.ndarray) -> np.ndarray:
        """Tell which of some labels are wanted."""
        if self.labels is None:
            return np.ones(labels.shape, bool)
        return np.isin(labels, self.labels)

    def order(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return the indices of the boxes (n) that are wanted, the best first."""
        wanted = np.flatnonzero((scores >= self.score_thr) & self.has(labels))
        return wanted[np.argsort(-scores[wanted], kind="stable")]


def choose(
    score_thr: float | None, wanted: Sequence[str] | None, classes: list[str], task: str
) -> Choice:
    """Return what a score threshold and names of classes choose; None is the usual.

    Raises:
        UserError: the threshold cannot be, or the model does not know a name.
    """
    if score_thr is not None and task != "detection":
        raise UserError(f"a score threshold is for detectors; this is a {task} model")
    if score_thr is not None and not 0 <= score_thr <= 1:
        raise UserError(f"score threshold {score_thr}: expected 0 to 1, such as 0.5")
    for name in wanted or ():
        if name not in classes:
            near = difflib.get_close_matches(name, classes, 3, 0.5) or classes[:10]
            raise UserError(f"no class {name!r}; near it: {', '.join(near)}")
    labels = None if wanted is None else [classes.index(name) for name in wanted]
    return Choice(SCORE_THR if score_thr is None else score_thr, labels)


def instances(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    masks: np.ndarray | None,
    classes: list[str],
) -> list[dict[str, Any]]:
    """List boxes, and masks where there are any, as results in COCO's format.

    A category's id is its label + 1.

    Args:
        boxes: (n, 4), x1, y1, x2, y2.
        scores, labels: (n).
        masks: (n, H, W) of bool.
        classes: names, in the order of the labels.
    """
    encoded = [] if masks is None else encode(masks)
    results = []
    for i, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        label, score = int(labels[i]), round(float(scores[i]), 5)
        result: dict[str, Any] = dict(category_id=label + 1, category_name=classes[label])
        result["score"] = score
        result["bbox"] = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
        results.append(result | (dict(segmentation=encoded[i]) if encoded else {}))
    return results


def encode(masks: np.ndarray) -> list[dict[str, Any]]:
    """Encode masks (n, H, W) as COCO's run lengths, in text that JSON can hold."""
    from pycocotools import mask as coco_mask

    encoded = [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in masks]
    return [dict(size=rle["size"], counts=rle["counts"].decode()) for rle in encoded]


def label_map(labels: np.ndarray, count: int) -> np.ndarray:
    """Return labels (H, W) in uint8 if `count` classes leave its largest number, else in uint16."""
    if count <= 255:
        return np.where(labels < count, labels, 255).astype(np.uint8)
    return np.where(labels < count, labels, NO_CLASS).astype(np.uint16)


def first_classes(scores: np.ndarray, classes: list[str], choice: Choice) -> list[dict[str, Any]]:
    """List the best of the classes that are wanted, a dict with label, class and score each."""
    wanted = np.flatnonzero(choice.has(np.arange(len(scores))))
    order = wanted[np.argsort(-scores[wanted], kind="stable")][:FIRST]
    named = [(label, classes[label], float(scores[label])) for label in order.tolist()]
    return [{"label": i, "class": name, "score": round(score, 5)} for i, name, score in named]
