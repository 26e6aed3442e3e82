"""Count the boxes of a COCO file that are left out, and see whether they are in pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..report import Report, count, few, near, without
from .masks import Masks, inspect_masks
from .values import Record, sides

IGNORED, CROWDS = "boxes marked to be ignored", "boxes marked as crowd (iscrowd)"
OF_OTHERS = "boxes of categories that are not among the classes"
AREAS = 0.01, 2  # of width times height: what a thin mask may have, and none within the box
ODD_AREAS = "boxes with an area under a hundredth or over twice of width times height"


class Boxes:
    """Hold the boxes of a checked file as arrays, a row for each annotation."""

    def __init__(self, content: Record, classes: Sequence[str] | None) -> None:
        self.annotations: list[Record] = content.get("annotations", [])
        self.names = {one["id"]: one["name"] for one in content["categories"]}
        wanted = [*self.names.values()] if classes is None else [*classes]
        self.per_class = dict.fromkeys(wanted, 0)
        self.labels = {key: name for key, name in self.names.items() if name in self.per_class}
        rows = {one["id"]: row for row, one in enumerate(content["images"])}
        sizes = np.array([*map(sides, content["images"]), (0, 0)], np.int64)
        # -1, the last row, is of images that the file does not list.
        self.images = np.array([rows.get(one["image_id"], -1) for one in self.annotations], int)
        self.height, self.width = sizes[self.images].T
        boxes = np.array([one["bbox"] for one in self.annotations], float).reshape(-1, 4)
        self.x, self.y, self.w, self.h = boxes.T
        self.right, self.bottom = self.x + self.w, self.y + self.h
        self.known = self.images >= 0
        self.named = np.array([one["category_id"] in self.labels for one in self.annotations], bool)
        self.crowd = np.array([bool(one["iscrowd"]) for one in self.annotations], bool)
        self.area = np.array([one["area"] for one in self.annotations], float)
        self.files = [str(one["file_name"]) for one in content["images"]]

    def faults(self) -> Iterator[str]:
        """Find boxes in other units than pixels, or with corners in the place of sizes."""
        known, number = self.known, int(self.known.sum())
        if not number:
            return
        values = np.stack([self.x, self.y, self.w, self.h])[:, known]
        if values.min() >= 0 and values.max() <= 1 and (values % 1).any():
            if min(self.width[known].min(), self.height[known].min()) > 1:
                yield (
                    f": all {number} boxes lie between 0 and 1; expected x, y, width and height in "
                    "pixels: multiply them by the size of their image"
                )
            return
        beyond = self.beyond()[known]
        corners = (self.x < self.w) & (self.w <= self.width + 1)
        corners &= (self.y < self.h) & (self.h <= self.height + 1)
        if number > 2 and corners[known].mean() > 0.95 and beyond.mean() > 0.25:
            yield (
                f": {beyond.sum()} of {number} boxes reach beyond their image, and lie within it "
                "if their last two numbers are a corner; expected x, y, width and height: subtract "
                "x and y"
            )

    def beyond(self) -> np.ndarray:
        """Tell which boxes reach beyond their image by more than a pixel."""
        far = (self.right > self.width + 1) | (self.bottom > self.height + 1)
        return far | (self.x < -1) | (self.y < -1)

    def reasons(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (what MMDetection leaves out and why, which boxes that is), in its order."""
        ignore = np.array([bool(one.get("ignore", False)) for one in self.annotations], bool)
        across = np.minimum(self.right, self.width) - np.maximum(self.x, 0)
        down = np.minimum(self.bottom, self.height) - np.maximum(self.y, 0)
        yield "boxes of an image that the file does not list", ~self.known
        yield IGNORED, ignore
        yield "boxes of negative size", (self.w < 0) | (self.h < 0)
        yield "boxes of zero area or thinner than a pixel", (self.w < 1) | (self.h < 1)
        yield "boxes whose area is given as 0 or less", self.area <= 0
        yield "boxes outside the image", (across <= 0) | (down <= 0)
        yield f"{OF_OTHERS} ({few(sorted(self.other_names()))})", ~self.named

    def other_names(self) -> set[str]:
        """Return the names, or else the ids, of categories that are not among the classes."""
        ids = {self.annotations[i]["category_id"] for i in np.flatnonzero(~self.named)}
        return {str(self.names.get(one, one)) for one in ids}

    def example(self, row: int) -> str:
        """Name the file of a box, and the class that its category may be a slip for."""
        where = f"annotation {self.annotations[row]['id']}"
        where = self.files[self.images[row]] if self.known[row] else where
        name = str(self.names.get(self.annotations[row]["category_id"], ""))
        other = "" if self.named[row] else near(name, self.per_class)
        return f"{where}; is {name!r} a slip for {other!r}?" if other else where

    def odd_areas(self) -> np.ndarray:
        """Tell which areas can be neither those of the boxes nor of masks within."""
        whole = self.w * self.h
        return (self.area > AREAS[1] * whole) | (self.area < AREAS[0] * whole)

    def leave_out(self, report: Report, what: str, rows: np.ndarray) -> None:
        """Count boxes that are left out; of those that nobody has marked so, name one."""
        report.skipped[what] += len(rows)
        if len(rows) and what not in (IGNORED, CROWDS):
            report.examples[what] = self.example(rows[0])

    def count(self, report: Report, use: str, masks: bool, polygons_alone: bool) -> None:
        """Count what is left out, what looks odd, and what is left."""
        left = np.ones(len(self.annotations), bool)
        for what, which in self.reasons():
            self.leave_out(report, what, np.flatnonzero(left & which))
            left &= ~which
        report.odd["boxes beyond the edge of the image"] += int((left & self.beyond()).sum())
        report.odd[ODD_AREAS] += int((left & self.odd_areas()).sum())
        compared = self.known & self.named  # with predictions
        # An evaluation counts no box as missed whose area is below zero, as none that is a crowd.
        missed = int((compared & ~left & ~self.crowd & (self.area >= 0)).sum())
        note_lost(report, use, missed, "that cannot be found (see what was skipped)")
        loaded = compared if use == "evaluate" else left.copy()
        # The host keeps crowds, and learns nothing of them.
        self.leave_out(report, CROWDS, np.flatnonzero(left & self.crowd))
        left &= ~self.crowd
        learnt = left
        if masks:
            learnt = self.count_masks(report, use, loaded, left, polygons_alone)
        self.count_left(report, left)
        boxes = f"none of its {len(left)} boxes"
        if use == "train" and len(left) and not learnt.any():
            report.add([f": {boxes} can be learnt{report.losses()}"])
        if use == "evaluate" and not learnt.any():
            report.add([f": {boxes} can be found{report.losses()}"])
        report.notes += without(report.per_class, "box") if use != "predict" else ()

    def count_masks(
        self, report: Report, use: str, loaded: np.ndarray, left: np.ndarray, polygons_alone: bool
    ) -> np.ndarray:
        """Count what is odd in the masks that are loaded; tell which boxes have a mask to learn.

        Boxes that are left out for their mask are no longer `left`.
        """
        rows = np.flatnonzero(loaded)
        found = inspect_masks(
            [self.annotations[row] for row in rows],
            np.stack([self.height, self.width], 1)[rows],
            strict=use != "train",
            polygons_alone=polygons_alone,
        )
        report.add(found.faults)
        self.leave_out(report, found.UNUSABLE, rows[found.unusable & left[rows]])
        left[rows[found.unusable]] = False
        blank = int((found.blank & left[rows]).sum())
        report.odd["masks without a pixel"] += blank
        report.odd["masks mostly outside their box"] += self.astray(rows, found, left)
        report.odd["parts of masks that are no polygons (left out)"] += found.parts
        note_lost(report, use, blank, "whose mask has no pixel")
        learnt = left.copy()
        learnt[rows[found.blank]] = False
        return learnt

    def astray(self, rows: np.ndarray, found: Masks, left: np.ndarray) -> int:
        """Count the masks of which the greater part lies outside of their box."""
        low = np.maximum(found.low, np.stack([self.x, self.y], 1)[rows])
        high = np.minimum(found.high, np.stack([self.right, self.bottom], 1)[rows])
        whole, inside = ((b - a).clip(0).prod(1) for a, b in ((found.low, found.high), (low, high)))
        return int((left[rows] & (whole >= 1) & (inside < whole / 2)).sum())

    def count_left(self, report: Report, left: np.ndarray) -> None:
        """Count the images without a box that is left, and the boxes of each class."""
        report.empty = report.images - len(np.unique(self.images[left]))
        for row in np.flatnonzero(left):
            self.per_class[self.labels[self.annotations[row]["category_id"]]] += 1
        report.per_class = self.per_class


def note_lost(report: Report, use: str, boxes: int, why: str) -> None:
    """Note boxes that an evaluation looks for in vain."""
    if use == "evaluate" and boxes:
        report.notes.append(f": {count(boxes, 'boxes')} {why}, counted as missed")
