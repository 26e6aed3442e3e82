"""Check what a COCO file holds, and count what MMDetection leaves out of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import DataError

LISTS = {"images": ("id", "file_name", "height", "width"), "categories": ("id", "name")}
ORDER = "(metainfo.classes, in the file's order)"
ANNOTATION = ("id", "image_id", "category_id", "bbox", "area")


def check_coco(content: dict[str, Any], dataset: Any) -> None:
    """Raise DataError where a COCO file would make a wrong figure, or none."""
    for fault in faults(content, dataset):
        raise DataError(f"annotation file {dataset.ann_file}{fault}")


def faults(content: dict[str, Any], dataset: Any) -> Iterator[str]:
    """Yield what is wrong with a COCO file, for a line that begins with its name."""
    for key, fields in LISTS.items():
        yield from faults_of_records(content.get(key), key, fields)
    # mmdet numbers labels in the file's order and names them in that of the classes.
    classes = list(dataset.metainfo["classes"])
    names = [category["name"] for category in content["categories"]]
    found = [name for name in names if name in classes]
    if missing := [name for name in classes if name not in names]:
        yield f" has no category {few(missing)}, which the config's classes name {ORDER}"
    if found != classes:
        yield f" has the categories {few(found)}; expected the config's {few(classes)} {ORDER}"
    if "annotations" not in content and not (dataset.filter_cfg or {}).get("filter_empty_gt"):
        return  # images alone, to be predicted or without labels
    yield from faults_of_records(content.get("annotations"), "annotations", ANNOTATION)
    sizes = {image["id"]: [image["height"], image["width"]] for image in content["images"]}
    for annotation in content["annotations"]:  # evaluators use those that the data set skips, too
        number, box = annotation["id"], annotation["bbox"]
        numbers = isinstance(box, list) and all(isinstance(x, (int, float)) for x in box)
        if not (numbers and len(box) == 4 and all(map(math.isfinite, box))):
            yield f": annotation {number} has the box {box}; expected x, y, width and height"
        mask, size = annotation.get("segmentation"), sizes.get(annotation["image_id"])
        if isinstance(mask, dict) and size and list(mask.get("size", ())) != size:
            yield (
                f": the mask of annotation {number} has the size {mask.get('size')}; expected "
                f"{size} (height, width) as its image"
            )


def faults_of_records(records: Any, key: str, fields: tuple[str, ...]) -> Iterator[str]:
    """Yield what is wrong with a list of records that have some fields."""
    if not isinstance(records, list):
        yield f": expected COCO's format, with a list {key!r}"
    for record in records:
        if missing := [name for name in fields if name not in record]:
            number = record.get("id", "without id")
            yield f": record {number} of {key!r} lacks {', '.join(missing)}"


def few(names: Iterable[str]) -> str:
    """Join the first five of some names."""
    names = list(names)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def count_skipped(content: dict[str, Any], dataset: Any) -> Counter[str]:
    """Count the boxes of a COCO file that a data set leaves out, by reason, in the host's order."""
    skipped: Counter[str] = Counter()
    others: Counter[str] = Counter()
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    used = set(dataset.cat_ids)
    for annotation in content.get("annotations", ()):
        left, top, width, height = annotation["bbox"]
        across, down = sizes.get(annotation["image_id"], (0, 0))
        category = annotation["category_id"]
        if annotation["image_id"] not in sizes:
            skipped["of images that the file does not list"] += 1
        elif annotation.get("ignore", False):
            skipped["marked to be ignored"] += 1
        elif annotation["area"] <= 0 or width < 1 or height < 1:
            skipped["of zero area or thinner than a pixel"] += 1
        elif min(left + width, across) <= max(left, 0) or min(top + height, down) <= max(top, 0):
            skipped["outside their image"] += 1
        elif category not in used:
            others[str(names.get(category, category))] += 1
    if others:
        reason = f"of categories that are not among the classes ({few(sorted(others))})"
        skipped[reason] = others.total()
    return skipped
