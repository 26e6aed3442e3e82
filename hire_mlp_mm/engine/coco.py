"""Check what a COCO file holds, and count what MMDetection leaves out of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from ..errors import DataError

LISTS = {"images": ("id", "file_name", "height", "width"), "categories": ("id", "name")}
ANNOTATION = ("id", "image_id", "category_id", "bbox", "area")


def check_coco(content: dict[str, Any], dataset: Any) -> None:
    """Raise DataError where a COCO file would make a wrong figure, or none.

    Annotations of boxes that the data set skips are checked, too, as evaluators use them.
    """
    path = dataset.ann_file
    for key, fields in LISTS.items():
        check_records(content, path, key, fields)
    check_names(content, path, list(dataset.metainfo["classes"]))
    if "annotations" not in content and not (dataset.filter_cfg or {}).get("filter_empty_gt"):
        return  # images alone, to be predicted or without labels
    check_records(content, path, "annotations", ANNOTATION)
    sizes = {one["id"]: [one["height"], one["width"]] for one in content["images"]}
    for one in content["annotations"]:
        box = one["bbox"]
        if not (isinstance(box, list) and len(box) == 4 and all(map(is_finite, box))):
            raise DataError(
                f"annotation file {path}: annotation {one['id']} has the box {box}; "
                "expected x, y, width and height"
            )
        mask, size = one.get("segmentation"), sizes.get(one["image_id"])
        if isinstance(mask, dict) and size and list(mask.get("size", ())) != size:
            raise DataError(
                f"annotation file {path}: the mask of annotation {one['id']} has the size "
                f"{mask.get('size')}; expected {size} (height, width) as its image"
            )


def few(names: Iterable[str]) -> str:
    """Join the first of some names."""
    names = list(names)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def is_finite(number: Any) -> bool:
    """Tell whether a value is a number, and finite."""
    return isinstance(number, (int, float)) and math.isfinite(number)


def check_records(content: dict[str, Any], path: str, key: str, fields: tuple[str, ...]) -> None:
    """Raise DataError unless `content[key]` is a list of records with these fields."""
    records = content.get(key)
    if not isinstance(records, list):
        raise DataError(f"annotation file {path}: expected COCO's format, with a list {key!r}")
    for record in records:
        missing = [name for name in fields if name not in record]
        if missing:
            number = record.get("id", "without id")
            raise DataError(
                f"annotation file {path}: record {number} of {key!r} lacks {', '.join(missing)}"
            )


def check_names(content: dict[str, Any], path: str, classes: list[str]) -> None:
    """Raise DataError unless the file's categories are the classes, in their order.

    mmdet numbers labels in the file's order and names them in that of the classes.
    """
    names = [one["name"] for one in content["categories"]]
    found = [name for name in names if name in classes]
    if found == classes:
        return
    missing = [name for name in classes if name not in names]
    if missing:
        what = f"has no category {few(missing)}, which the config's classes name"
    else:
        what = f"has the categories {few(found)}; expected the config's {few(classes)}"
    raise DataError(f"annotation file {path} {what} (metainfo.classes, in the file's order)")


def count_skipped(content: dict[str, Any], dataset: Any) -> Counter[str]:
    """Count the boxes of a COCO file that a data set leaves out, by reason, in the host's order."""
    skipped: Counter[str] = Counter()
    images = {one["id"]: (one["width"], one["height"]) for one in content["images"]}
    names = {one["id"]: one["name"] for one in content["categories"]}
    used = set(dataset.cat_ids)
    others: Counter[str] = Counter()
    for one in content.get("annotations", ()):
        left, top, width, height = one["bbox"]
        across, down = images.get(one["image_id"], (0, 0))
        if one["image_id"] not in images:
            skipped["of images that the file does not list"] += 1
        elif one.get("ignore", False):
            skipped["marked to be ignored"] += 1
        elif one["area"] <= 0 or width < 1 or height < 1:
            skipped["of zero area or thinner than a pixel"] += 1
        elif min(left + width, across) <= max(left, 0) or min(top + height, down) <= max(top, 0):
            skipped["outside their image"] += 1
        elif one["category_id"] not in used:
            others[str(names.get(one["category_id"], one["category_id"]))] += 1
    if others:
        skipped[f"of categories that are not among the classes ({few(sorted(others))})"] = (
            others.total()
        )
    return skipped
