"""Tell what the values in a COCO file are, and write them for people."""

from __future__ import annotations

import json
from typing import Any

from ...errors import short

Record = dict[str, Any]

FIELDS = {
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox", "area"),
}
LIMIT = 1e9  # no box is further away; float32 and pycocotools' integers hold it


def is_number(value: Any, limit: float = LIMIT) -> bool:
    """Tell whether a value is a finite number within a limit."""
    return type(value) in (int, float) and -limit <= value <= limit


def is_box(value: Any) -> bool:
    """Tell whether a value is a list of four numbers."""
    return type(value) is list and len(value) == 4 and all(map(is_number, value))


def kind_of(value: Any) -> str:
    """Name the type of an id."""
    if type(value) is int or (type(value) is float and is_number(value)):
        return "a number"
    return "text" if type(value) is str else type(value).__name__


def sides(image: Record) -> tuple[Any, Any]:
    """Return height and width of an image."""
    return image["height"], image["width"]


def said(value: Any) -> str:
    """Write a value for a line on a terminal, as it stands in the file."""
    return short(json.dumps(value, ensure_ascii=False, default=repr), 60)
