"""Check the masks of a COCO file: polygons, and run lengths in either of their two spellings."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from .values import Record, is_number, said

CHUNK = 50_000  # polygons at a time, for the memory's sake
FAR = 1e6  # pixels: pycocotools walks along a polygon's sides, and needs memory for their length
CURE = (
    "draw the mask, or take a recipe without masks, such as retinanet_hire_s_1x_coco (in an "
    "evaluation: metric='bbox')"
)


@dataclass
class Masks:
    """Hold what was found in the masks of some annotations, a row for each of them.

    Attributes:
        unusable: those for which MMDetection ignores the whole object.
        blank: those that cover no pixel of their image.
        low, high: (N, 2), corners of the box around the polygons within the image, in pixels; 0
            where there are none.
        parts: how many polygons are left out of masks that have others.
        faults: what must not be trained or tested, a line each.
    """

    UNUSABLE: ClassVar[str] = "boxes whose mask has no polygon of three points or more"

    unusable: np.ndarray
    blank: np.ndarray
    low: np.ndarray
    high: np.ndarray
    parts: int = 0
    faults: list[str] = field(default_factory=list)


def inspect_masks(
    annotations: Sequence[Record], sizes: np.ndarray, *, strict: bool, polygons_alone: bool
) -> Masks:
    """Inspect masks as pycocotools reads them.

    Args:
        annotations: of images that the file lists.
        sizes: (N, 2), height and width of each one's image.
        strict: whether a polygon that is none is a fault, as for an evaluation: pycocotools takes
            four numbers for a box and fails at the end of it, or draws what mmdet leaves out.
        polygons_alone: whether masks as run lengths are left out.
    """
    count = len(annotations)
    low, high = np.full((count, 2), np.inf), np.full((count, 2), -np.inf)
    masks = Masks(np.zeros(count, bool), np.zeros(count, bool), low, high)
    polygons: list[list[float]] = []
    owners: list[int] = []
    for row, one in enumerate(annotations):
        mask = one.get("segmentation")
        if isinstance(mask, list) and mask:
            parts = [part for part in mask if is_polygon(part)]
            fault = fault_of_parts(mask, len(parts), strict)
            masks.unusable[row] = not parts
            masks.parts += len(mask) - len(parts) if parts else 0
            polygons += parts
            owners += [row] * len(parts)
        elif isinstance(mask, dict) and mask:
            fault, covered = check_run_lengths(mask, *map(int, sizes[row]))
            masks.unusable[row] = polygons_alone
            masks.blank[row] = not covered
        else:
            given = said(mask) if "segmentation" in one else "missing"
            fault = f"has no mask, its segmentation is {given}; {CURE}"
        if fault:
            masks.faults.append(f": annotation {said(one['id'])} {fault}")
    places, thin = np.array(owners, int), []
    for start in range(0, len(polygons), CHUNK):
        part = slice(start, start + CHUNK)
        values = flat(polygons[part])
        if values is None or not (np.abs(values) <= FAR).all():
            masks.faults += faults_of_values(polygons[part], places[part], annotations)
        else:
            lengths = np.array([*map(len, polygons[part])])
            thin += thin_rows(values, lengths, places[part], sizes, masks)
    for row in [] if masks.faults else thin:  # pycocotools does not survive every fault
        parts = [part for part in annotations[row]["segmentation"] if is_polygon(part)]
        masks.blank[row] = covers_nothing(parts, *map(int, sizes[row]))
    nowhere = low > high
    low[nowhere] = high[nowhere] = 0
    return masks


def is_polygon(part: Any) -> bool:
    """Tell whether MMDetection takes a part of a mask for a polygon, whatever its values are."""
    return type(part) is list and len(part) >= 6 and len(part) % 2 == 0


def fault_of_parts(mask: list[Any], polygons: int, strict: bool) -> str:
    """Say what is wrong with a mask that is a list of polygons; nothing if it can be used."""
    if polygons == len(mask):
        return ""
    for place, part in enumerate(mask):
        if type(part) is not list:
            return (
                f"has the segmentation {said(mask)}; expected a list of polygons, each a list "
                "[x1, y1, x2, y2, x3, y3, ...]"
            )
        # A later part of one or two points covers nothing for pycocotools, too.
        if strict and not is_polygon(part) and (place == 0 or len(part) not in (2, 4)):
            return (
                f"has a polygon of {len(part)} numbers; expected x and y of three points or more; "
                f"{CURE}"
            )
    return ""


# Polygons -----------------------------------------------------------------------------------------


def thin_rows(
    values: np.ndarray, lengths: np.ndarray, owners: np.ndarray, sizes: np.ndarray, masks: Masks
) -> list[int]:
    """Return the rows of masks that may cover no pixel, few of all; widen the boxes around all.

    Args:
        values: (N,), x and y of the points of all polygons, one behind the other.
        lengths: (M,), how many of them each polygon has.
        owners: (M,), the row of its mask.
        sizes: height and width of the image of each row.
        masks: whose `low` and `high` are widened.
    """
    areas, low, high = measure(values.reshape(-1, 2), lengths // 2, sizes[owners])
    np.minimum.at(masks.low, owners, low)
    np.maximum.at(masks.high, owners, high)
    rows, inside = np.unique(owners), (high - low >= 1).all(1)
    area, seen = np.bincount(owners, areas)[rows], np.bincount(owners, inside)[rows]
    return rows[(area < 2) | (seen == 0)].tolist()


def flat(lists: list[list[Any]]) -> np.ndarray | None:
    """Put the numbers of lists one behind the other; None if there is something else in them."""
    values = array("d")
    try:
        for one in lists:
            values.fromlist(one)
    except (TypeError, OverflowError):
        return None
    return np.frombuffer(values)


def faults_of_values(
    polygons: list[list[Any]], owners: np.ndarray, annotations: Sequence[Record]
) -> Iterator[str]:
    """Yield the polygons with values that are no coordinates of a point."""
    for part, row in zip(polygons, owners, strict=True):
        wrong = next((value for value in part if not is_number(value, FAR)), None)
        if wrong is not None or None in part:
            yield (
                f": annotation {said(annotations[row]['id'])} has a polygon with the value "
                f"{said(wrong)}; expected x and y of points in pixels"
            )


def measure(points: np.ndarray, counts: np.ndarray, sizes: np.ndarray) -> tuple[Any, Any, Any]:
    """Measure polygons by their points, which stand one behind the other.

    Args:
        points: (N, 2), x and y.
        counts: (M,), points of each polygon.
        sizes: (M, 2), height and width of its image.

    Returns:
        areas (M,) in pixels, 0 where a polygon is flat; the lower and the higher corner of its box
        (M, 2), cut at the edges of the image.
    """
    ends = np.cumsum(counts)
    starts = ends - counts
    following = np.arange(1, len(points) + 1)
    following[ends - 1] = starts
    (x, y), (next_x, next_y) = points.T, points[following].T
    areas = np.abs(np.add.reduceat(x * next_y - next_x * y, starts)) / 2
    low = np.maximum(np.minimum.reduceat(points, starts), 0)
    high = np.minimum(np.maximum.reduceat(points, starts), sizes[:, ::-1])
    return areas, low, high


def covers_nothing(polygons: list[list[float]], height: int, width: int) -> bool:
    """Tell whether the mask of some polygons has no pixel, as pycocotools draws it."""
    from pycocotools import mask

    drawn = mask.merge(mask.frPyObjects(polygons, height, width))
    return int(mask.area(drawn)) == 0


# Run lengths --------------------------------------------------------------------------------------


def check_run_lengths(mask: dict[str, Any], height: int, width: int) -> tuple[str, int]:
    """Say what is wrong with a mask as run lengths, and how many pixels it covers."""
    if mask.get("size") != [height, width]:
        return (
            f"has a mask of the size {said(mask.get('size'))}; expected {[height, width]} (height, "
            "width) as its image",
            0,
        )
    counts = mask.get("counts")
    lengths = decode_counts(counts) if isinstance(counts, str) else counts
    if not isinstance(lengths, list) or not all(map(is_length, lengths)):
        return f"has run lengths (counts) {said(counts)} that cannot be read", 0
    if sum(lengths) != height * width:
        pixels = f"{sum(lengths)} pixels"
        return f"has run lengths of {pixels} in all; expected the {height * width} of its image", 0
    return "", int(sum(lengths[1::2]))


def is_length(value: Any) -> bool:
    """Tell whether a value is a number of pixels."""
    return is_number(value) and value >= 0 and value == int(value)


def decode_counts(text: str) -> list[int] | None:
    """Decode run lengths that are written as text; None if they end within a number.

    A character holds five bits, the lowest come first, and another bit tells whether the number
    goes on. From the fourth number on they are differences from the last but one.
    """
    lengths: list[int] = []
    number = shift = 0
    for char in text:
        bits = ord(char) - 48
        if not 0 <= bits < 64:
            return None
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:  # below zero
            number -= 1 << shift
        lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
        number = shift = 0
    return None if shift else lengths
