"""Check what a COCO file holds: every rule, for a run's data sets and evaluators and for people.

Each rule follows what MMDetection's `CocoDataset` and pycocotools do with the file.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import DataError, describe
from ..report import Report
from . import faults
from .boxes import Boxes
from .complete import complete_coco, number_annotations
from .values import FIELDS, sides

__all__ = ["check_coco", "complete_coco", "number_annotations", "read_coco"]


def read_coco(path: str | Path, source: str | Path | None = None) -> Any:
    """Read a JSON file in any of Unicode's encodings.

    Args:
        path: the file.
        source: how errors name it, where that is not its path.

    Raises:
        DataError: it is not JSON, or ends early.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source or path} cannot be read: {describe(error)}") from error


def check_coco(
    content: Any,
    source: str,
    *,
    classes: Sequence[str] | None = None,
    use: str = "train",
    masks: bool = False,
    polygons_alone: bool = False,
    may_be_empty: bool = False,
    min_size: int = 0,
    classwise: bool = False,
) -> Report:
    """Check the content of a COCO file, after `complete_coco` has filled in what it lacks.

    Args:
        content: what JSON gave; it is changed where something is filled in.
        source: the file's name, for lines about it.
        classes: the config's, in the order of the labels; None for the file's own.
        use: `train`: its boxes are learnt; `predict`: its images alone are needed;
            `evaluate`: predictions are compared with its boxes.
        masks: whether masks are read, too.
        polygons_alone: whether masks as run lengths are left out (`poly2mask=False`).
        may_be_empty: whether a training may have images without a single annotation.
        min_size: pixels of the shorter side below which a training leaves out an image.
        classwise: whether an evaluation gives the figures of each class.

    Returns:
        What was found. Where records are not what they should be, nothing is counted.
    """
    report = Report(source)
    if report.add(faults.of_lists(content, use, may_be_empty)):
        return report
    report.notes += complete_coco(content)
    images, categories = content["images"], content["categories"]
    annotations = content.get("annotations", ())
    for key, fields in FIELDS.items():
        report.add(faults.of_records(content.get(key, ()), key, fields))
    if report.faults or report.add(faults.of_ids(content)):
        return report
    report.add(faults.of_images(images))
    report.add(faults.of_names(categories, classes))
    report.add(faults.of_order(categories) if classwise else ())
    if report.add(faults.of_values(annotations)):
        return report
    report.images = len(images)
    boxes = Boxes(content, classes)
    if not report.add(boxes.faults()):
        boxes.count(report, use, masks, polygons_alone)
    if use == "train":
        small = sum(min(sides(image)) < min_size for image in images)
        report.skipped[f"images smaller than {min_size} pixels"] += small
    for counts in (report.skipped, report.odd):
        counts += Counter()  # which leaves out those of none
    return report
