"""Write objects as the content of a COCO file, for formats that are converted to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..errors import DataError, UserError
from .layout import Hints
from .report import few, listed

DIGITS = 3  # after the point, of a pixel
Box = tuple[float, float, float, float]  # left, top, width and height in pixels


class CocoContent:
    """Collect images and objects as the content of a COCO file.

    Identifiers begin at 1: evaluators take annotation 0 for 'nothing was found'.

    Attributes:
        content: what is to be written as json.
    """

    def __init__(self, categories: Sequence[str]) -> None:
        self.content: dict[str, list[dict[str, Any]]] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": i, "name": name} for i, name in enumerate(categories, 1)],
        }

    def add_image(self, file_name: str, width: int, height: int) -> None:
        """Add an image, to which the objects that follow belong."""
        images = self.content["images"]
        image = {"id": len(images) + 1, "file_name": file_name, "width": width, "height": height}
        images.append(image)

    def add_object(
        self, label: int, box: Box, polygon: Sequence[float] | None, ignored: bool
    ) -> None:
        """Add an object of the last image.

        A box without area is kept, so that checks count it, and evaluators do not take it for an
        object that was missed.

        Args:
            label: from 0, in the order of the categories.
            box: left, top, width and height in pixels.
            polygon: x, y, x, y, ... in pixels; None for a box alone.
            ignored: whether it is neither learnt nor counted as missed.
        """
        annotations = self.content["annotations"]
        has_area = box[2] > 0 and box[3] > 0
        annotation: dict[str, Any] = {
            "id": len(annotations) + 1,
            "image_id": len(self.content["images"]),
            "category_id": label + 1,
            "bbox": [round(number, DIGITS) for number in box],
            "area": round(box[2] * box[3] if has_area else 0.0, DIGITS),
            "iscrowd": int(ignored or not has_area),
        }
        if polygon is not None:
            annotation["segmentation"] = [[round(number, DIGITS) for number in polygon]]
            annotation["area"] = round(area_of(polygon), DIGITS)
        annotations.append(annotation)


def area_of(polygon: Sequence[float]) -> float:
    """Return the area of a polygon (x, y, x, y, ...)."""
    xs, ys = polygon[0::2], polygon[1::2]
    pairs = zip(xs, ys, [*xs[1:], xs[0]], [*ys[1:], ys[0]], strict=True)
    return abs(sum(x * y1 - x1 * y for x, y, x1, y1 in pairs)) / 2


def choose_classes(names: list[str], hints: Hints, notes: list[str], source: str) -> list[str]:
    """Choose the classes among the names of a data set, in its order.

    Args:
        names: in the data set's order.
        hints: may name some of them.
        notes: get a line for names that are left out, or are in another order.
        source: what the names are from, for messages.

    Raises:
        UserError: if a class that was asked for is none of the names.
        DataError: if a name is empty or occurs twice.
    """
    twice = [f"the name {name!r} twice" for name, times in Counter(names).items() if times > 1]
    for fault in twice + ["an empty name" for name in names if not name.strip()]:
        raise DataError(f"{source} has {fault}; expected a name of its own for each class")
    lower = Counter(name.lower() for name in names)
    if alike := sorted(name for name in names if lower[name.lower()] > 1):
        notes.append(f"classes whose names differ in capitals alone: {few(alike)}")
    if hints.classes is None:
        return names
    if unknown := [name for name in hints.classes if name not in names]:
        raise UserError(f"--classes has {few(unknown)}, not a name of {source}: {few(names, 20)}")
    classes = [name for name in names if name in hints.classes]
    if classes != hints.classes:
        notes.append(f"classes in the order of {source}: {few(classes, 20)}")
    notes += listed([n for n in names if n not in classes], "names not among --classes", "")
    return classes
