"""Describe a data set as it lies in a folder: its task, its classes, its splits.

`read_layout(folder)` understands what lies there; `configure.use_data` puts it into a config.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TASKS = ("detection", "segmentation", "classification")
SPLITS = ("train", "val", "test")


@dataclass
class Split:
    """Describe a split of a data set.

    Attributes:
        images: the folder of the images.
        annotations: a COCO file that lies there already, or the folder of the masks; None where
            the classes are the folders of `images`, or where `coco` holds what was converted.
        coco: the content of a COCO file that was made of other files, to be written beside the
            config; its file names are relative to `images`.
        names: the images of this split, relative to `images`, with `/` between folders and with
            their suffix, where they are not all that lie there (a seeded split, or a list of
            names); None for all.
    """

    images: Path
    annotations: Path | None = None
    coco: dict[str, Any] | None = None
    names: list[str] | None = None


@dataclass
class Layout:
    """Describe a data set.

    Attributes:
        task: one of `TASKS`.
        kind: the format in words, such as `Pascal VOC XML`.
        root: the folder.
        classes: the names, in the order of the labels.
        splits: by `train`, `val`, `test`; the last may be missing.
        palette: a colour (red, green, blue) for each class; None for colours of our own.
        has_masks: whether a detection's annotations have polygons or masks for every object.
        reduce_zero_label: whether label 0 of a mask is no class, and 1 is the first.
        ignore_index: the label of a mask's pixels that are not learnt.
        image_suffix, mask_suffix: of the files of a segmentation.
        mask_table: where masks are colours, the label of each (red, green, blue); such masks are
            written once as indices beside the config.
        notes: what was understood, what was passed over and why, a line each.
    """

    task: str
    kind: str
    root: Path
    classes: list[str]
    splits: dict[str, Split]
    palette: list[tuple[int, int, int]] | None = None
    has_masks: bool = False
    reduce_zero_label: bool = False
    ignore_index: int = 255
    image_suffix: str = ".jpg"
    mask_suffix: str = ".png"
    mask_table: dict[tuple[int, int, int], int] | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class Hints:
    """Hold what a person says of a data set that its files do not say themselves.

    Attributes:
        classes: names, in the order of the labels; None for those that the files have.
        val: the share of the training images that becomes the validation split where the folder
            has none, from 0 to 1; None if there has to be one.
        seed: of that split.
        ignore: the label of a mask's pixels to ignore; None for the 255 that is usual.
        task: one of `TASKS`, where a folder may hold data for several; None for what is found
            first.
    """

    classes: list[str] | None = None
    val: float | None = None
    seed: int = 0
    ignore: int | None = None
    task: str | None = None
