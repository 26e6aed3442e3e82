"""Understand a folder with YOLO txt files, and convert them to COCO's format.

A line is an object: the number of its class, and its box (centre, width, height) or its polygon
(x, y, x, y, ...), as shares of the image's width and height.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import DataError, UserError, describe, short
from .class_names import FILES, read_names
from .coco_content import Box, CocoContent, choose_classes
from .layout import Hints, Layout, Split
from .report import count, few, listed
from .splits import ALL, complete, note_overlap
from .tree import (
    Tree,
    belongs,
    common_folder,
    image_size,
    join,
    last,
    parent,
    read_lines,
    relative,
    role_of,
    split_of,
    split_of_folder,
    stem_of,
)

KIND = "YOLO txt"
LOOKED_INTO = 50  # label files, before they are taken for another format
BEYOND = 0.01  # of the image's side: how far a rounded point may lie outside
SPLIT_KEYS = {"train": "train", "val": "val", "valid": "val", "test": "test"}  # of a yaml file
YAMLS, TEXTS = (".yaml", ".yml"), (".txt",)
Rows = dict[str, list["Row"]]  # by the image


@dataclass
class Row:
    """Hold an object of a label file: its class, and numbers from 0 to 1."""

    label: int
    numbers: list[float]


@dataclass
class Found:
    """Hold what was found of a YOLO data set.

    Attributes:
        labels: the label files, relative to the folder.
        file: its yaml file, relative to the folder; "" where there is none.
        yaml: the content of that file.
    """

    labels: list[str]
    file: str = ""
    yaml: dict[str, Any] = field(default_factory=dict)


def find(tree: Tree) -> Found | None:
    """Find label files, and the yaml file that names their classes.

    Raises:
        DataError: if there are label files, and a yaml file that is malformed.
    """
    images = {stem_of(name) for name in tree.images()}
    texts = [n for n in tree.files(TEXTS) if belongs(parent(n)) and last(n).lower() not in FILES]
    labels = [n for n in texts if stem_of(n) in images or "labels" in parent(n).split("/")]
    for name in (name for name in tree.files(YAMLS) if belongs(parent(name))):
        try:
            content = read_yaml(tree.root / name)
        except DataError:
            if labels:
                raise
            continue  # another program's
        is_mine = isinstance(content, dict) and "names" in content
        if is_mine and (labels or not SPLIT_KEYS.keys().isdisjoint(content)):
            return Found(labels, name, content)
    in_folder = [name for name in labels if "labels" in parent(name).split("/")]
    named = in_folder or (labels if read_names(tree) else [])
    is_yolo = any(is_labels(tree.root / name) for name in named[:LOOKED_INTO])
    return Found(labels) if is_yolo else None


def is_labels(path: Path) -> bool:
    """Tell whether the first line of a text file is an object of YOLO's."""
    try:
        words = read_lines(path)[0].split()
        return len(words) >= 5 and all(math.isfinite(float(word)) for word in words)
    except (DataError, IndexError, ValueError):
        return False


def read_yaml(path: Path) -> Any:
    """Read a yaml file.

    Raises:
        DataError: if it is malformed.
    """
    import yaml  # type: ignore[import-untyped]  # comes with mmengine

    try:
        return yaml.safe_load(path.read_bytes())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path} is no yaml that can be read: {describe(error)}") from error


def read(tree: Tree, found: Found, hints: Hints) -> Layout:
    """Describe the data set of YOLO txt files.

    Raises:
        DataError: if a label file has a line that is no object, or a class without name.
        UserError: if the classes have no names, or there is no split to validate with.
    """
    notes: list[str] = []
    parts = complete(tree, find_images(tree, found, notes), hints, notes)
    note_overlap(parts, notes)
    label_of = match_labels(tree, found.labels)
    images = dict.fromkeys(name for part in parts.values() for name in part.names)
    rows = {i: read_rows(tree, label_of[i], found) if i in label_of else [] for i in images}
    note_labels(found, label_of, rows, notes)
    categories, source = names_of_classes(tree, found, hints, rows)
    check_labels(tree, label_of, rows, categories, source)
    classes = choose_classes(categories, hints, notes, source)
    splits = {split: convert(tree, part.names, rows, categories) for split, part in parts.items()}
    objects = [row for many in rows.values() for row in many]
    polygons = sum(len(row.numbers) > 4 for row in objects)
    if 0 < polygons < len(objects):
        notes.append(f"{polygons} of {len(objects)} objects are polygons, the others boxes alone")
    has_masks = 0 < polygons == len(objects)
    return Layout("detection", KIND, tree.root, classes, splits, has_masks=has_masks, notes=notes)


# Images ------------------------------------------------------------------------------------------


def find_images(tree: Tree, found: Found, notes: list[str]) -> dict[str, list[str]]:
    """Find the images of each split, by the yaml file or by the folders' names."""
    images: dict[str, list[str]] = {}
    for key, split in SPLIT_KEYS.items():
        values = found.yaml.get(key)
        if not values or split in images:
            continue
        said = values if isinstance(values, list) else [values]
        places = [find_place(tree, found, value) for value in said]
        if None in places:
            line = f"{key!r} of {found.file} names {few(said)}, which is not in the folder"
            if split != "test":
                raise DataError(
                    f"{tree.root}: {line}; expected a folder or a .txt list of images, relative to "
                    "the .yaml file"
                )
            notes.append(f"passed over: {line}")
            continue
        names = (name for place in places for name in images_at(tree, place or ""))
        images[split] = list(dict.fromkeys(names))
        what = ", ".join(place or "." for place in places)
        if not images[split]:
            raise DataError(f"{tree.root / found.file}: no image in {what}, which {key!r} names")
        number = count(len(images[split]), "images")
        notes.append(f"{split}: {what} ({number}), as {found.file} says")
    if not images:
        for name in tree.images():
            images.setdefault(split_of_folder(parent(name)) or ALL, []).append(name)
    return images


def find_place(tree: Tree, found: Found, value: Any) -> str | None:
    """Find the folder or the list of images that a value of a yaml file names, None without it.

    The yaml file may have been written on another machine or for another place: the end of what it
    says decides, as far as it is in the folder.
    """
    value = str(value).replace("\\", "/")
    path = str(found.yaml.get("path") or "").replace("\\", "/")
    for end in [*ends_of(f"{path}/{value}"), *ends_of(value)]:
        place = join(parent(found.file), end)
        if place in tree.folders or last(place) in tree.folders.get(parent(place), ()):
            return place
    return None


def ends_of(path: str) -> list[str]:
    """Return the ends of a path, the longest first, that keep its words for splits and images."""
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", ".", "..")]
    ends = [] if parts else [""]
    for start, part in enumerate(parts):
        ends.append("/".join(parts[start:]))
        if split_of(part) or role_of(part) == "images":
            break
    return ends


def images_at(tree: Tree, place: str) -> Iterator[str]:
    """Yield the images in a folder, or those that a .txt list names."""
    if place in tree.folders:
        yield from tree.images(place)
        return
    known = set(tree.images())
    for line in read_lines(tree.root / place):
        ends = ends_of(line.replace("\\", "/"))
        image = next((e for e in [join(parent(place), e) for e in ends] + ends if e in known), None)
        if image is None:
            raise DataError(f"{tree.root / place} lists {short(line)}, which is not in {tree.root}")
        yield image


# Labels ------------------------------------------------------------------------------------------


def match_labels(tree: Tree, labels: list[str]) -> dict[str, str]:
    """Match images with label files: in `labels` instead of `images`, or beside the image."""
    known = {(parent(name), stem_of(name)): name for name in labels}
    matched: dict[str, str] = {}
    for image in tree.images():
        before, images, after = f"/{parent(image)}/".rpartition("/images/")
        elsewhere = f"{before}/labels/{after}".strip("/") if images else parent(image)
        for folder in (elsewhere, parent(image)):
            if label := known.get((folder, stem_of(image))):
                matched.setdefault(image, label)
    return matched


def read_rows(tree: Tree, name: str, found: Found) -> list[Row]:
    """Read a label file.

    Raises:
        DataError: if a line is no object; the message has its number.
    """
    rows = []
    for number, line in enumerate(read_lines(tree.root / name), 1):
        try:
            label, *numbers = (float(word) for word in line.split())
        except ValueError:
            label, numbers = math.nan, []
        if found.yaml.get("kpt_shape"):
            numbers = numbers[:4]  # a box, then key points
        if fault := fault_of(label, numbers):
            raise DataError(f"{tree.root / name}, line {number} ({short(line, 40)}): {fault}")
        rows.append(Row(int(label), numbers))
    return rows


def fault_of(label: float, numbers: list[float]) -> str | None:
    """Say what is wrong with the numbers of a line, None where nothing is."""
    if not (math.isfinite(label) and label >= 0 and label == int(label)):
        return "expected the number of a class, from 0, then a box or a polygon"
    if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        return f"{count(len(numbers), 'numbers')} after the class; expected 4 of a box, or pairs"
    if not all(-BEYOND <= number <= 1 + BEYOND for number in numbers):
        return "expected shares of the image's width and height, from 0 to 1"
    return None


def note_labels(found: Found, label_of: dict[str, str], rows: Rows, notes: list[str]) -> None:
    """Note images without objects, and labels without image; there has to be an object.

    Raises:
        DataError: if no image of the splits has one.
    """
    if not any(rows.values()):
        raise DataError(
            f"none of {count(len(rows), 'images')}, such as {next(iter(rows))}, has a label file "
            "with objects; expected it beside the image, or in 'labels' instead of 'images'"
        )
    without = [image for image in rows if image not in label_of]
    notes += listed(without, "images without label file, taken as images without objects", "")
    if empty := sum(image in label_of and not rows[image] for image in rows):
        notes.append(f"{count(empty, 'empty label files')} (images without objects)")
    lonely = sorted(set(found.labels).difference(label_of.values()))
    notes += listed(lonely, "label files without image")
    if found.yaml.get("kpt_shape"):
        notes.append("key points are left out: the boxes before them are taken")


# Classes -----------------------------------------------------------------------------------------


def names_of_classes(tree: Tree, found: Found, hints: Hints, rows: Rows) -> tuple[list[str], str]:
    """Return the names of all classes by their number, and what they are from.

    Raises:
        DataError: if a file has something else than a name for each number from 0.
        UserError: if there are no names.
    """
    if found.yaml:
        return names_of_yaml(tree.root / found.file, found.yaml), found.file
    if table := read_names(tree):
        numbers = table.numbers or range(len(table.names))
        pairs = dict(zip(numbers, table.names, strict=True))
        return in_order(pairs, tree.root / table.file), table.file
    if hints.classes:
        return hints.classes, "--classes"
    used = sorted({row.label for many in rows.values() for row in many})
    raise UserError(
        f"{tree.root} numbers its classes ({few(used, 20)}) and has no names for them: give "
        "--classes, or write classes.txt with a name a line"
    )


def names_of_yaml(path: Path, content: dict[str, Any]) -> list[str]:
    """Return the names of a yaml file in their order: a list, or a mapping from numbers."""
    names = content["names"]
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise DataError(f"{path}: expected 'names' to be a list or a mapping from numbers")
    for number, text in names.items():
        if not isinstance(text, str | int | float) or isinstance(text, bool):
            raise DataError(f"{path}: name {number} is {text!r} in yaml; put it into quotes")
    total = content.get("nc", len(names))
    if total != len(names):
        raise DataError(f"{path}: 'nc' is {total!r}, but 'names' has {len(names)}")
    return in_order(names, path)


def in_order(names: dict[Any, Any], path: Path) -> list[str]:
    """Return names by their numbers, which have to be all from 0."""
    by_number = {str(number): str(name).strip() for number, name in names.items()}
    if missing := [number for number in map(str, range(len(names))) if number not in by_number]:
        raise DataError(
            f"{path}: the names have the numbers {few(names)}, without {few(missing)}; expected 0 "
            f"to {len(names) - 1}"
        )
    return [by_number[str(number)] for number in range(len(names))]


def check_labels(
    tree: Tree, label_of: dict[str, str], rows: Rows, categories: list[str], source: str
) -> None:
    """Raise DataError at the first object whose class has no name."""
    for image, many in rows.items():
        for number, row in enumerate(many, 1):
            if row.label >= len(categories):
                raise DataError(
                    f"{tree.root / label_of[image]}, object {number}: class {row.label}, but "
                    f"{source} has the names 0 to {len(categories) - 1} ({few(categories)})"
                )


# Conversion --------------------------------------------------------------------------------------


def convert(tree: Tree, names: list[str], rows: Rows, categories: list[str]) -> Split:
    """Convert the label files of a split."""
    folder = common_folder(names)
    coco = CocoContent(categories)
    for image, name in zip(names, relative(names, folder), strict=True):
        width, height = image_size(tree.root / image)
        coco.add_image(name, width, height)
        for row in rows[image]:
            box, polygon = in_pixels(row.numbers, width, height)
            coco.add_object(row.label, box, polygon, False)
    return Split(tree.root / folder, coco=coco.content)


def in_pixels(numbers: list[float], width: int, height: int) -> tuple[Box, list[float] | None]:
    """Return the box, and the polygon if it is one, in pixels."""
    if len(numbers) == 4:
        x, y, w, h = numbers
        return ((x - w / 2) * width, (y - h / 2) * height, w * width, h * height), None
    xs, ys = [x * width for x in numbers[0::2]], [y * height for y in numbers[1::2]]
    polygon = [number for point in zip(xs, ys, strict=True) for number in point]
    return (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)), polygon
