"""Check the splits of a data set as a config uses them, and count what is in them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from mmengine.config import Config

from ..data.coco import check_coco
from ..data.coco.files import faults_of_files, note_of_turned
from ..data.folders import check_folders
from ..data.labels import Labels
from ..data.layout import Layout
from ..data.listing import after, evenly
from ..data.mask_files import decode_by_table
from ..data.masks import check_masks, decode_labels, passed_over
from ..data.report import Report, without
from ..data.tree import image_size
from ..engine.config import innermost
from ..errors import DataError
from .loaders import learns_masks, steps
from .sources import Size, Source

SIZED = 1000  # images that are opened for their size


def check_splits(cfg: Config, layout: Layout, sources: dict[str, Source]) -> dict[str, Report]:
    """Check all files of each split, with the functions that a run asks, too.

    Args:
        cfg: that was given the data set.
        layout: of the data set.
        sources: where the config finds each split.
    """
    check: Callable[[Config, Layout, Source, str], Report] = dict(
        detection=check_boxes, segmentation=check_labels, classification=check_images
    )[layout.task]
    return {name: check(cfg, layout, source, name) for name, source in sources.items()}


def check_boxes(cfg: Config, layout: Layout, source: Source, name: str) -> Report:
    """Check a COCO file, or what will be written as one."""
    split = layout.splits[name]
    title = str(split.annotations or f"{layout.root}, split {name}")
    dataset = innermost(cfg.train_dataloader.dataset)
    filters = dataset.get("filter_cfg") or {}
    report = check_coco(
        source.coco,
        title,
        classes=layout.classes,
        use="train" if name == "train" else "evaluate",
        masks=learns_masks(cfg),
        polygons_alone=any(step.get("poly2mask") is False for step, _ in steps(dataset, "dataset")),
        may_be_empty=filters.get("filter_empty_gt") is False,
        min_size=filters.get("min_size", 0),
    )
    paths = [os.path.join(split.images, image) for image in source.names]
    report.add(faults_of_files(paths, str(split.images)))
    loads = [str(step.get("color_type")) for step, _ in steps(dataset, "dataset")]
    if not any("ignore_orientation" in kind for kind in loads):
        report.notes += note_of_turned(paths)
    report.sizes = extremes(source.coco_sizes())
    return report


def check_labels(cfg: Config, layout: Layout, source: Source, name: str) -> Report:
    """Check all masks of a split; masks of colours as they will be written."""
    split = layout.splits[name]
    images, masks = str(split.images), str(split.annotations)
    suffixes = layout.image_suffix, layout.mask_suffix
    stems = [image.removesuffix(suffixes[0]) for image in source.names]
    pairs = [
        (os.path.join(images, f"{stem}{suffixes[0]}"), os.path.join(masks, f"{stem}{suffixes[1]}"))
        for stem in stems
    ]
    meaning = Labels(layout.classes, layout.ignore_index, layout.reduce_zero_label)
    table = layout.mask_table
    decode = partial(decode_by_table, table) if table else decode_labels
    report = check_masks(pairs, meaning, masks, decode=decode)
    if split.names is None:
        report.skipped += passed_over(images, masks, *suffixes)
    report.sizes = extremes(sizes_in(split.images, source.names)[0])
    return report


def check_images(cfg: Config, layout: Layout, source: Source, name: str) -> Report:
    """Check the folders of the classes, and open some images; named ones are counted by folder."""
    split = layout.splits[name]
    if split.names is None:
        report = check_folders(split.images, layout.classes)
    else:
        counts = Counter(image.partition("/")[0] for image in source.names)
        per_class = {name: counts[name] for name in layout.classes}
        report = Report(str(split.images), images=len(source.names), per_class=per_class)
        report.notes += without(per_class, "images")
    sizes, unreadable = sizes_in(split.images, source.names)
    report.sizes = extremes(sizes)
    report.add(after(report.source, line) for line in unreadable)
    return report


def extremes(sizes: Iterable[Size]) -> tuple[Size, Size] | None:
    """Return the smallest and the largest size by the number of pixels; None of no sizes."""
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    return (ordered[0], ordered[-1]) if ordered else None


def sizes_in(folder: Path, names: Sequence[str]) -> tuple[list[Size], list[str]]:
    """Open `SIZED` of some images, evenly spread; list their sizes, and why others have none."""
    sizes, unreadable = [], []
    for i in evenly(len(names), SIZED):
        try:
            sizes.append(image_size(folder / names[i]))
        except DataError as error:
            unreadable.append(str(error))
    return sizes, unreadable
