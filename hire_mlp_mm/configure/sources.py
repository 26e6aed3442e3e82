"""Say where a config finds each split of a data set: files, folders, and how many images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..data.coco import read_coco
from ..data.coco_folder import keep_images
from ..data.folders import class_folders, samples_of
from ..data.layout import Layout, Split
from ..data.listing import files_under
from ..data.mask_files import suffix_written, write_masks
from ..errors import DataError
from .beside import Beside

Size = tuple[int, int]  # width and height in pixels


@dataclass
class Source:
    """Say where a loader finds a split.

    Attributes:
        keys: of the data set in a config.
        names: of its images, relative to the split's folder.
        coco: the content of the COCO file, of a detection.
    """

    keys: dict[str, Any]
    names: list[str]
    coco: dict[str, Any] = field(default_factory=dict)

    def coco_sizes(self) -> Iterator[Size]:
        """Yield the sizes that the COCO file gives; it may not have been checked yet."""
        for image in self.coco.get("images", ()):
            width, height = image.get("width"), image.get("height")
            if isinstance(width, int) and isinstance(height, int):
                yield width, height


def find_sources(layout: Layout, beside: Beside) -> dict[str, Source]:
    """Find the images of each split; what has to be written for it is added to `beside`."""
    find: Callable[[Layout, str, Beside], Source] = dict(
        detection=coco_source, segmentation=mask_source, classification=folder_source
    )[layout.task]
    return {name: find(layout, name, beside) for name in layout.splits}


def coco_source(layout: Layout, name: str, beside: Beside) -> Source:
    """Find a COCO file, or have one written."""
    split = layout.splits[name]
    content = coco_content(split)
    path = split.annotations
    if split.coco is not None or split.names is not None or path is None:
        path = beside.add_coco(name, content)
    keys = dict(ann_file=place(path, layout), data_prefix=dict(img=place(split.images, layout)))
    return Source(keys, [image["file_name"] for image in content["images"]], content)


def coco_content(split: Split) -> dict[str, Any]:
    """Read or take the content of a split's COCO file, of the images that are named alone."""
    content = split.coco
    if content is None:
        content = read_coco(str(split.annotations))
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise DataError(f"{split.annotations}: expected COCO's format, with a list 'images'")
    return content if split.names is None else keep_images(content, set(split.names))


def mask_source(layout: Layout, name: str, beside: Beside) -> Source:
    """Find folders of images and of masks; masks of colours are to be written as indices."""
    split, suffix = layout.splits[name], layout.image_suffix
    names = split.names
    if names is None:
        names = within(split.images, files_under(split.images))
        names = sorted(name for name in names if name.endswith(suffix))  # as the host does
    stems = [image.removesuffix(suffix) for image in names]
    masks, mask_suffix = Path(str(split.annotations)), layout.mask_suffix
    if layout.mask_table:
        folder = beside.add("_masks", partial(write_masks, layout))
        masks, mask_suffix = folder / name, suffix_written(mask_suffix)
    prefix = dict(img_path=place(split.images, layout), seg_map_path=place(masks, layout))
    keys: dict[str, Any] = dict(data_prefix=prefix, seg_map_suffix=mask_suffix)
    if split.names is not None:
        keys["ann_file"] = place(beside.add_list(name, stems), layout)
    return Source(keys, names)


def folder_source(layout: Layout, name: str, beside: Beside) -> Source:
    """Find a folder per class; named images are to be listed with their labels."""
    split = layout.splits[name]
    keys: dict[str, Any] = dict(data_prefix=place(split.images, layout))
    if split.names is None:
        folder = str(split.images)
        samples = samples_of(folder, class_folders(folder, layout.classes)[0])
        return Source(keys, within(split.images, (path for path, _ in samples)))
    labels = {label: i for i, label in enumerate(layout.classes)}
    lines = [f"{image} {labels[image.partition('/')[0]]}" for image in split.names]
    keys["ann_file"] = place(beside.add_list(name, lines), layout)
    return Source(keys, split.names)


def within(folder: Path, paths: Iterable[str]) -> list[str]:
    """Write the paths of files of a folder relative to it, with `/` between folders."""
    return [Path(path).relative_to(folder).as_posix() for path in paths]


def place(path: Path, layout: Layout) -> str:
    """Write a path as it stands in a config: relative to the data root where it lies in there."""
    path, root = path.absolute(), layout.root.absolute()
    within = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
    return "" if within == "." else within
