"""Understand a folder with Pascal VOC XML files, and convert them to COCO's format.

A box is given by its corner pixels, counted from 1: (1, 1, 640, 480) is all of an image of 640 x
480 pixels. Where a data set has a corner at 0, its corners are taken for edges, counted from 0.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError, describe, short
from .coco_content import Box, CocoContent, choose_classes
from .layout import Hints, Layout, Split
from .report import count, few, listed
from .splits import ALL, complete, note_overlap, read_lists
from .tree import (
    Tree,
    belongs,
    common_folder,
    image_size,
    last,
    parent,
    relative,
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

    def has_area(self) -> bool:
        """Tell whether the last corner is right of and below the first."""
        left, top, right, bottom = self.corners
        return right > left and bottom > top


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
    objects: list[VocObject]
    image: str = ""


def find(tree: Tree) -> list[str]:
    """Find the XML files of a data set; none where the first ones are of another format."""
    files = [name for name in tree.files((".xml",)) if belongs(parent(name))]
    named = [f for f in files if last(parent(f)).lower() == "annotations"] or files
    return files if any(is_voc(tree.root / name) for name in named[:LOOKED_INTO]) else []


def is_voc(path: Path) -> bool:
    """Tell whether the beginning of an XML file is that of an annotation."""
    with path.open("rb") as file:
        return b"<annotation" in file.read(2000)


def read(tree: Tree, found: list[str], hints: Hints) -> Layout:
    """Describe the data set of XML files.

    Raises:
        DataError: if an XML file cannot be read, or a list names what is not there.
        UserError: if there is no split to validate with.
    """
    notes: list[str] = []
    by_image = match_images(tree, [read_xml(tree.root, name) for name in found], notes)
    parts = complete(tree, find_splits(tree, by_image, notes), hints, notes)
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
    other_size = [f.name for f in files if f.size and f.size != image_size(tree.root / f.image)]
    notes += listed(other_size, ".xml files that state another size than their image has", "")
    return Layout("detection", KIND, tree.root, classes, splits, notes=notes)


# Files -------------------------------------------------------------------------------------------


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
    return VocFile(name, text_of(top, "filename"), size_of(top), objects)


def text_of(element: ET.Element, key: str) -> str:
    """Return the text of an element in another, "" without it."""
    return (element.findtext(key) or "").strip()


def size_of(top: ET.Element) -> tuple[int, int] | None:
    """Return the width and height that an XML file gives, None where it gives no useful ones."""
    try:
        width, height = (int(float(text_of(top, f"size/{key}"))) for key in ("width", "height"))
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def read_object(path: Path, number: int, element: ET.Element) -> VocObject:
    """Read an object of an XML file; `number` counts them from 1, for messages."""
    name = text_of(element, "name")
    if not name:
        raise DataError(f"{path}: object {number} has no <name>")
    texts = [text_of(element, f"bndbox/{corner}") for corner in CORNERS]
    try:
        left, top, right, bottom = (float(text) for text in texts)
    except ValueError:
        left = top = right = bottom = math.nan
    corners = left, top, right, bottom
    if not all(map(math.isfinite, corners)):
        raise DataError(
            f"{path}: object {number} has the box {few(map(repr, texts))}; expected numbers for "
            f"{', '.join(CORNERS)}"
        )
    return VocObject(name, corners, text_of(element, "difficult").lower() in ("1", "true"))


# Images and splits -------------------------------------------------------------------------------


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
            renamed.append(f"{file.name} ({file.file_name})")
        if other := matched.get(file.image):
            raise DataError(f"{tree.root / file.image} has two files: {other.name}, {file.name}")
        matched[file.image] = file
    bare = sorted(i for many in images.values() for i in many if i not in matched)
    notes += [
        *listed(lonely, ".xml files without image"),
        *listed(bare, "images without .xml file (one without <object> says that nothing is there)"),
        *listed(
            renamed,
            ".xml files with the name of another image in it; the image of the file's own name is "
            "taken",
            "",
        ),
    ]
    return dict(sorted(matched.items()))


def distance(image: str, file: str) -> tuple[bool, bool, str]:
    """Say how far an image is from an XML file: another folder, another split."""
    folders = parent(image), parent(file)
    apart = split_of_folder(folders[0]) != split_of_folder(folders[1])
    return folders[0] != folders[1], apart, image


def find_splits(tree: Tree, by_image: dict[str, VocFile], notes: list[str]) -> dict[str, list[str]]:
    """Find the images of each split, from the lists in ImageSets or from the folders' names."""
    image_of = {stem_of(file.name): image for image, file in by_image.items()}
    found = read_lists(tree, LISTS, image_of, ".xml file", notes)
    if found:
        notes += listed(sorted(set(by_image).difference(*found.values())), "images in no list")
        return found
    for image, file in by_image.items():
        split = split_of_folder(parent(file.name)) or split_of_folder(parent(image)) or ALL
        found.setdefault(split, []).append(image)
    return found


# Objects -----------------------------------------------------------------------------------------


def first_corner(files: list[VocFile], notes: list[str]) -> int:
    """Return from which number the corners are counted: 1, or 0 where a corner is at 0."""
    at_zero = sum(0 in obj.corners[:2] for file in files for obj in file.objects)
    notes.append(
        f"corners are edges, counted from 0: {count(at_zero, 'objects')} with a corner at 0"
        if at_zero
        else "corners are pixels, counted from 1: (1, 1, width, height) is the whole image"
    )
    return 0 if at_zero else 1


def note_objects(files: list[VocFile], notes: list[str]) -> None:
    """Note objects that will not be learnt, and why."""
    difficult = sum(obj.difficult for file in files for obj in file.objects)
    if difficult:
        notes.append(
            f"{count(difficult, 'objects')} marked difficult: neither learnt nor counted as "
            "missed, as in VOC's own evaluation (iscrowd 1)"
        )
    flat = [file.name for file in files for obj in file.objects if not obj.has_area()]
    what = "objects without width or height, neither learnt nor counted as missed"
    notes += listed(flat, what, "")


def convert(tree: Tree, files: list[VocFile], categories: list[str], first: int) -> Split:
    """Convert the XML files of a split; corners are counted from `first`."""
    folder = common_folder(file.image for file in files)
    coco = CocoContent(categories)
    for file, name in zip(files, relative((f.image for f in files), folder), strict=True):
        coco.add_image(name, *(file.size or image_size(tree.root / file.image)))
        for obj in file.objects:
            left, top, right, bottom = obj.corners
            # A last pixel is part of the box; without area, one pixel would be made up.
            more = first if obj.has_area() else 0
            box = (left - first, top - first, right - left + more, bottom - top + more)
            coco.add_object(categories.index(obj.name), box, None, obj.difficult)
    return Split(tree.root / folder, coco=coco.content)
