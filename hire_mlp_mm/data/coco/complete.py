"""Fill in what a COCO file lacks where that can mean one thing only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from ..report import count
from .values import Record, is_box, is_number


def complete_coco(content: Any) -> list[str]:
    """Fill in what a COCO file lacks and can mean one thing only.

    `iscrowd` becomes 0, `area` that of the box, `bbox` that of the polygons; sizes of images such
    as 480.0 become whole numbers.

    Returns:
        A line for each kind of thing that was filled in.
    """
    filled: Counter[str] = Counter()
    for one in dicts_of(content, "images"):
        for key in ("height", "width"):
            if isinstance(one.get(key), float) and one[key].is_integer():
                one[key] = int(one[key])
                filled["height or width as a fraction, taken as whole pixels"] += 1
    for one in dicts_of(content, "annotations"):
        if one.get("iscrowd") is None:
            one["iscrowd"] = 0
            filled["no iscrowd, taken as 0"] += 1
        if one.get("bbox") is None and (box := box_around(one.get("segmentation"))):
            one["bbox"] = box
            filled["no bbox, taken from the polygons"] += 1
        if one.get("area") is None and is_box(one.get("bbox")):
            one["area"] = one["bbox"][2] * one["bbox"][3]
            filled["no area, taken as the box's"] += 1
    return [f": {count(number, 'records')} with {what}" for what, number in filled.items()]


def number_annotations(content: Record) -> bool:
    """Number the annotations of a checked file anew where pycocotools needs other numbers.

    It takes 0 for 'unmatched', and computes with what it takes for numbers.

    Returns:
        Whether that was needed.
    """
    annotations = content.get("annotations", ())
    if all(one["id"] and not isinstance(one["id"], str) for one in annotations):
        return False
    for number, one in enumerate(annotations, start=1):
        one["id"] = number
    return True


def dicts_of(content: Any, key: str) -> Iterator[Record]:
    """Yield the records of a list that are what they should be; none if there is no list."""
    records = content.get(key) if isinstance(content, dict) else None
    if isinstance(records, list):
        yield from (one for one in records if isinstance(one, dict))


def box_around(polygons: Any) -> list[float] | None:
    """Return x, y, width and height of the box around some polygons; None if it has none."""
    if not isinstance(polygons, list) or not all(isinstance(part, list) for part in polygons):
        return None
    if not all(is_number(value) for part in polygons for value in part):
        return None
    across = [x for part in polygons for x in part[0::2]]
    down = [y for part in polygons for y in part[1::2]]
    if not (across and down):
        return None
    return [min(across), min(down), max(across) - min(across), max(down) - min(down)]
