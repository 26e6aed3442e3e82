"""Understand a folder with Pascal VOC XML files, and convert them to COCO's format.

A box is given by its corner pixels, counted from 1: (1, 1, 640, 480) is all of an image of 640 x
480 pixels. Where a data set has a corner at 0, its corners are taken for edges, counted from 0.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError, describe, short
from .coco_content import Box, CocoContent, choose_classes
from .layout import SPLITS, Hints, Layout, Split
from .splits import ALL, complete, note_overlap
from .tree import (
    Tree,
    belongs,
    common_folder,
    count,
    image_size,
    last,
    parent,
    read_lines,
    relative,
    some,
    split_of_folder,
    stem_of,
)

KIND = "Pascal VOC XML"
LISTS = "ImageSets/Main"
MASKS = ("segmentationclass", "segmentationobject")  # folders beside JPEGImages
LOOKED_INTO = 20  # files, before they are taken for another format
CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass
class VocObject:
    """Hold an object of an XML file: its name and its corners, as they are written."""

    name: str
    corners: Box
    difficult: bool


@dataclass
class VocFile:
    """Hold an XML file.

    Attributes:
        name: relative to the data set's folder.
        file_name: of its image, as it says itself; "" where it says nothing.
        size: width and height; None where it does not say.
        objects: in its order.
        image: its image, relative to the data set's folder.
    """

    name: str
    file_name: str
    size: tuple[int, int] | None
    objects: list[VocObject] = field(default_factory=list)
    image: str = ""


def find(tree: Tree) -> list[str]:
    """Find the XML files of a data set; none where the first ones are of another format."""
    files = [name for name in tree.files(".xml") if belongs(parent(name))]
    named = [f for f in files if last(parent(f)).lower() == "annotations"] or files
    return files if any(is_voc(tree.root / name) for name in named[:LOOKED_INTO]) else []


def is_voc(path: Path) -> bool:
    """Say whether the beginning of an XML file is that of an annotation."""
    with path.open("rb") as file:
        return b"<annotation" in file.read(2000)


def read(tree: Tree, found: list[str], hints: Hints) -> Layout:
    """Describe the data set of XML files.

    Raises:
        DataError: if an XML file cannot be read, or a list names what is not there.
        UserError: if there is no split to validate with.
    """
    notes: list[str] = []
    files = [read_xml(tree.root, name) for name in found]
    by_image = match_images(tree, files, notes)
    parts = complete(tree.root, find_splits(tree, by_image, notes), hints, notes)
    note_overlap(parts, notes)
    files = list(by_image.values())
    names = sorted({obj.name for file in files for obj in file.objects})
    if not names:
        raise DataError(f"{tree.root}: no .xml file has an <object>; there is nothing to learn")
    classes = choose_classes(names, hints, notes, "the .xml files")
    categories = classes + [name for name in names if name not in classes]
    first = first_corner(files, notes)
    note_objects(files, notes)
    splits = {
        split: convert(tree, [by_image[name] for name in part.names], categories, first)
        for split, part in parts.items()
    }
    return Layout("detection", KIND, tree.root, classes, splits, notes=notes)


def read_xml(root: Path, name: str) -> VocFile:
    """Read an XML file.

    Raises:
        DataError: if it is malformed, or an object has no name or no box of four numbers.
    """
    path = root / name
    try:
        top = ET.parse(path).getroot()
    except (OSError, ET.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path} is no XML that can be read: {describe(error)}") from error
    if top.tag != "annotation":
        raise DataError(f"{path} has the element <{short(top.tag)}>; expected <annotation>")
    objects = [read_object(path, i, obj) for i, obj in enumerate(top.findall("object"), 1)]
    return VocFile(name, (top.findtext("filename") or "").strip(), size_of(top), objects)


def size_of(top: ET.Element) -> tuple[int, int] | None:
    """Return the width and height that an XML file gives, None where it gives no useful ones."""
    try:
        width, height = (
            int(float(top.findtext(f"size/{key}", "0"))) for key in ("width", "height")
        )
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def read_object(path: Path, number: int, element: ET.Element) -> VocObject:
    """Read an object of an XML file; `number` counts them from 1, for messages."""
    name = (element.findtext("name") or "").strip()
    if not name:
        raise DataError(f"{path}: object {number} has no <name>")
    box = element.find("bndbox")
    texts = ["" if box is None else box.findtext(corner, "") for corner in CORNERS]
    try:
        left, top, right, bottom = (float(text) for text in texts)
    except ValueError:
        left = top = right = bottom = math.nan
    corners = left, top, right, bottom
    if not all(map(math.isfinite, corners)):
        raise DataError(
            f"{path}: object {number} has the box {some(map(repr, texts))}; expected numbers for "
            f"{', '.join(CORNERS)}"
        )
    difficult = (element.findtext("difficult") or "").strip().lower() in ("1", "true")
    return VocObject(name, corners, difficult)


def match_images(tree: Tree, files: list[VocFile], notes: list[str]) -> dict[str, VocFile]:
    """Match XML files with images: by their own name, else by the name of an image in them.

    Returns:
        The XML files that have an image, by the image's name, sorted.
    """
    images: dict[str, list[str]] = {}
    for image in tree.images():
        if last(parent(image)).lower() not in MASKS:
            images.setdefault(stem_of(image), []).append(image)
    matched: dict[str, VocFile] = {}
    lonely, renamed = [], []
    for file in files:
        stated = stem_of(file.file_name.replace("\\", "/"))
        choice = images.get(stem_of(file.name)) or images.get(stated)
        if not choice:
            lonely.append(file.name)
            continue
        file.image = min(choice, key=lambda image: distance(image, file.name))
        if stated and stated != stem_of(file.image):
            renamed.append(f"{file.name} ({short(file.file_name)})")
        if other := matched.get(file.image):
            raise DataError(f"{tree.root / file.image} has two files: {other.name}, {file.name}")
        matched[file.image] = file
    if lonely:
        notes.append(
            f"passed over: {count(len(lonely), '.xml file')} without image: {some(lonely)}"
        )
    if renamed:
        notes.append(
            f"{count(len(renamed), '.xml file')} with the name of another image in it; the image "
            f"of the file's own name is taken: {some(renamed)}"
        )
    if bare := [i for many in images.values() for i in many if i not in matched]:
        notes.append(
            f"passed over: {count(len(bare), 'image')} without .xml file: {some(sorted(bare))} "
            "(an .xml file without <object> would say that nothing is there)"
        )
    return dict(sorted(matched.items()))


def distance(image: str, file: str) -> tuple[bool, bool, str]:
    """Say how far an image is from an XML file: another folder, another split."""
    folders = parent(image), parent(file)
    apart = split_of_folder(folders[0]) != split_of_folder(folders[1])
    return folders[0] != folders[1], apart, image


def find_splits(tree: Tree, by_image: dict[str, VocFile], notes: list[str]) -> dict[str, list[str]]:
    """Find the images of each split, from the lists in ImageSets or from the folders' names."""
    if lists := read_lists(tree, by_image, notes):
        return lists
    found: dict[str, list[str]] = {}
    for image, file in by_image.items():
        split = split_of_folder(parent(file.name)) or split_of_folder(parent(image)) or ALL
        found.setdefault(split, []).append(image)
    return found


def read_lists(tree: Tree, by_image: dict[str, VocFile], notes: list[str]) -> dict[str, list[str]]:
    """Read the lists of images in ImageSets/Main; none where there are no such lists."""
    image_of = {stem_of(file.name): image for image, file in by_image.items()}
    there = tree.folders.get(LISTS, [])
    lists = ["train.txt" if "train.txt" in there else "trainval.txt", "val.txt", "test.txt"]
    found: dict[str, list[str]] = {}
    for split, name in zip(SPLITS, lists, strict=True):
        if name not in there:
            continue
        lines = read_lines(tree.root / LISTS / name)
        stems = [stem_of(f"{line}.xml") for line in dict.fromkeys(lines)]
        missing = [stem for stem in stems if stem not in image_of]
        if missing and split == "test" and len(missing) == len(stems):
            notes.append(f"passed over: {name}, whose images or .xml files are not there")
            continue
        if missing:
            raise DataError(
                f"{tree.root / LISTS / name} lists {some(missing)}, without an image or an .xml "
                f"file ({len(missing)} of {len(stems)})"
            )
        found[split] = [image_of[stem] for stem in stems]
        notes.append(f"{split}: {LISTS}/{name} ({count(len(stems), 'image')})")
    listed = {image for images in found.values() for image in images}
    if found and (rest := [image for image in by_image if image not in listed]):
        notes.append(f"passed over: {count(len(rest), 'image')} in no list: {some(rest)}")
    return found


def first_corner(files: list[VocFile], notes: list[str]) -> int:
    """Return from which number the corners are counted: 1, or 0 where a corner is at 0."""
    at_zero = sum(0 in obj.corners[:2] for file in files for obj in file.objects)
    notes.append(
        f"corners are edges, counted from 0: {count(at_zero, 'object')} with a corner at 0"
        if at_zero
        else "corners are pixels, counted from 1: (1, 1, width, height) is the whole image"
    )
    return 0 if at_zero else 1


def note_objects(files: list[VocFile], notes: list[str]) -> None:
    """Note objects that will not be learnt, and why."""
    difficult = sum(obj.difficult for file in files for obj in file.objects)
    if difficult:
        notes.append(
            f"{count(difficult, 'object')} marked difficult: neither learnt nor counted as missed, "
            "as in VOC's own evaluation (iscrowd 1)"
        )
    flat = Counter(f.name for f in files for o in f.objects if not has_area(o.corners))
    if flat:
        notes.append(
            f"{count(flat.total(), 'object')} without width or height: neither learnt nor counted "
            f"as missed: {some(flat)}"
        )


def has_area(corners: Box) -> bool:
    """Say whether the last corner is right of and below the first."""
    left, top, right, bottom = corners
    return right > left and bottom > top


def convert(tree: Tree, files: list[VocFile], categories: list[str], first: int) -> Split:
    """Convert the XML files of a split; corners are counted from `first`."""
    folder = common_folder(file.image for file in files)
    coco = CocoContent(categories)
    for file, name in zip(files, relative((f.image for f in files), folder), strict=True):
        coco.add_image(name, *(file.size or image_size(tree.root / file.image)))
        for obj in file.objects:
            left, top, right, bottom = obj.corners
            # A last pixel is part of the box; without area, one pixel would be made up.
            more = first if has_area(obj.corners) else 0
            box = (left - first, top - first, right - left + more, bottom - top + more)
            coco.add_object(categories.index(obj.name), box, None, obj.difficult)
    return Split(tree.root / folder, coco=coco.content)
