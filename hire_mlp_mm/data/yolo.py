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
from .class_names import read_names
from .coco_content import Box, CocoContent, choose_classes
from .layout import Hints, Layout, Split
from .splits import ALL, complete, note_overlap
from .tree import (
    IMAGE_WORDS,
    Tree,
    belongs,
    common_folder,
    count,
    image_size,
    join,
    parent,
    read_lines,
    relative,
    some,
    split_of,
    split_of_folder,
    stem_of,
)

KIND = "YOLO txt"
BEYOND = 0.01  # of the image's side: how far a rounded point may lie outside
KEYS = {"train": "train", "val": "val", "valid": "val", "test": "test"}  # of a yaml file


@dataclass
class Row:
    """Hold an object of a label file: its class, and numbers from 0 to 1."""

    label: int
    numbers: list[float]


@dataclass
class Found:
    """Hold what was found of a YOLO data set.

    Attributes:
        yaml: its yaml file relative to the folder, and the content; None where there is none.
        labels: the label files, relative to the folder.
    """

    yaml: tuple[str, dict[str, Any]] | None = None
    labels: list[str] = field(default_factory=list)


def find(tree: Tree) -> Found | None:
    """Find a yaml file with names and splits, or label files in a folder `labels`."""
    images = {stem_of(name) for name in tree.images()}
    texts = [name for name in tree.files(".txt") if belongs(parent(name))]
    labels = [name for name in texts if stem_of(name) in images]
    for name in (name for name in tree.files(".yaml", ".yml") if belongs(parent(name))):
        try:
            content = read_yaml(tree.root / name)
        except DataError:
            if labels:
                raise
            continue  # another program's
        if isinstance(content, dict) and "names" in content and KEYS.keys() & content.keys():
            return Found((name, content), labels)
    in_folder = [name for name in labels if "labels" in PurePosixPath(parent(name)).parts]
    named = in_folder or (labels if read_names(tree.root, tree) else [])
    return Found(None, labels) if any(is_labels(tree.root / name) for name in named[:50]) else None


def is_labels(path: Path) -> bool:
    """Say whether the first line of a text file is an object of YOLO's."""
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
    names = find_images(tree, found, notes)
    parts = complete(tree.root, names, hints, notes)
    note_overlap(parts, notes)
    labels = match_labels(tree, found.labels)
    images = list(dict.fromkeys(name for part in parts.values() for name in part.names))
    rows = {i: read_rows(tree.root, labels[i], found) if i in labels else [] for i in images}
    note_labels(labels, rows, notes)
    categories, source = names_of_classes(tree, found, hints, rows, labels)
    check_labels(tree.root, labels, rows, categories, source)
    classes = choose_classes(categories, hints, notes, source)
    splits = {split: convert(tree, part.names, rows, categories) for split, part in parts.items()}
    objects = [row for image in images for row in rows[image]]
    polygons = sum(len(row.numbers) > 4 for row in objects)
    if 0 < polygons < len(objects):
        notes.append(f"{polygons} of {len(objects)} objects are polygons, the others boxes alone")
    has_masks = 0 < polygons == len(objects)
    return Layout("detection", KIND, tree.root, classes, splits, has_masks=has_masks, notes=notes)


# Images ------------------------------------------------------------------------------------------


def find_images(tree: Tree, found: Found, notes: list[str]) -> dict[str, list[str]]:
    """Find the images of each split, by the yaml file or by the folders' names."""
    if found.yaml:
        return images_of_yaml(tree, *found.yaml, notes)
    images: dict[str, list[str]] = {}
    for name in tree.images():
        images.setdefault(split_of_folder(parent(name)) or ALL, []).append(name)
    return images


def images_of_yaml(
    tree: Tree, name: str, content: dict[str, Any], notes: list[str]
) -> dict[str, list[str]]:
    """Find the images of each split that a yaml file names."""
    everything = tree.images()
    images: dict[str, list[str]] = {}
    for key, split in KEYS.items():
        values = content.get(key)
        if not values or split in images:
            continue
        said = values if isinstance(values, list) else [values]
        places = [find_place(tree, name, content.get("path"), value) for value in said]
        if None in places:
            line = f"{key!r} of {name} names {some(said)}, which is not in the folder"
            if split != "test":
                raise DataError(
                    f"{tree.root}: {line}; expected a folder or a .txt list of images, relative to "
                    "the .yaml file"
                )
            notes.append(f"passed over: {line}")
            continue
        images[split] = list(
            dict.fromkeys(i for place in places for i in images_at(tree, place or "", everything))
        )
        what = ", ".join(place or "." for place in places)
        notes.append(f"{split}: {what} ({count(len(images[split]), 'image')}), as {name} says")
        if not images[split]:
            raise DataError(f"{tree.root / name}: no image in {what}, which {key!r} names")
    return images


def find_place(tree: Tree, name: str, path: Any, value: Any) -> str | None:
    """Find the folder or the list of images that a value of a yaml file names, None without it.

    The yaml file may have been written on another machine or for another place: the end of what it
    says decides, as far as it is in the folder.
    """
    base, lists = parent(name), tree.files(".txt")
    whole = str(PurePosixPath(str(path or "").replace("\\", "/"), str(value).replace("\\", "/")))
    for said in (whole, str(value).replace("\\", "/")):
        for place in (join(base, end) if end else base for end in ends_of(said)):
            if place in tree.folders or place in lists:
                return place
    return None


def ends_of(path: str) -> list[str]:
    """Return the ends of a path, the longest first, that keep its words for splits and images."""
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", ".", "..")]
    ends = [""] if not parts else []
    for start, part in enumerate(parts):
        ends.append("/".join(parts[start:]))
        if split_of(part) or part.lower() in IMAGE_WORDS:
            break
    return ends


def images_at(tree: Tree, place: str, everything: list[str]) -> Iterator[str]:
    """Yield the images in a folder, or those that a .txt list names."""
    if place in tree.folders:
        start = f"{place}/" if place else ""
        yield from (name for name in everything if name.startswith(start))
        return
    known = set(everything)
    for line in read_lines(tree.root / place):
        ends = ends_of(line.replace("\\", "/"))
        image = next((e for e in [join(parent(place), e) for e in ends] + ends if e in known), None)
        if image is None:
            raise DataError(f"{tree.root / place} lists {short(line)}, which is not in {tree.root}")
        yield image


# Labels ------------------------------------------------------------------------------------------


def match_labels(tree: Tree, labels: list[str]) -> dict[str, str]:
    """Match images with label files: beside the image, or in `labels` instead of `images`."""
    known = {(parent(name), stem_of(name)): name for name in labels}
    matched = {}
    for image in tree.images():
        parts = parent(image).split("/")
        folders = [parent(image)]
        if "images" in parts:
            at = len(parts) - 1 - parts[::-1].index("images")
            folders.insert(0, "/".join([*parts[:at], "labels", *parts[at + 1 :]]))
        for folder in folders:
            if label := known.get((folder, stem_of(image))):
                matched[image] = label
                break
    return matched


def note_labels(labels: dict[str, str], rows: dict[str, list[Row]], notes: list[str]) -> None:
    """Note images without objects; there has to be an object.

    Raises:
        DataError: if no image of the splits has one.
    """
    without = [image for image in rows if image not in labels]
    empty = [labels[image] for image in rows if image in labels and not rows[image]]
    if not any(rows.values()):
        raise DataError(
            f"none of {count(len(rows), 'image')}, such as {next(iter(rows))}, has a label file "
            "with objects; expected it beside the image, or in 'labels' instead of 'images'"
        )
    if without:
        notes.append(
            f"{count(len(without), 'image')} without label file, taken as images without objects: "
            f"{some(without)}"
        )
    if empty:
        notes.append(f"{count(len(empty), 'empty label file')} (images without objects)")


def read_rows(root: Path, name: str, found: Found) -> list[Row]:
    """Read a label file.

    Raises:
        DataError: if a line is no object; the message has its number.
    """
    with_points = bool(found.yaml and found.yaml[1].get("kpt_shape"))
    rows = []
    for number, line in enumerate(read_lines(root / name), 1):
        try:
            label, *numbers = (float(word) for word in line.split())
        except ValueError:
            label, numbers = math.nan, []
        if with_points:
            numbers = numbers[:4]  # a box, then key points
        if fault := fault_of(label, numbers):
            raise DataError(f"{root / name}, line {number} ({short(line, 40)}): {fault}")
        rows.append(Row(int(label), numbers))
    return rows


def fault_of(label: float, numbers: list[float]) -> str | None:
    """Say what is wrong with the numbers of a line, None where nothing is."""
    if not (math.isfinite(label) and label >= 0 and label == int(label)):
        return "expected the number of a class, from 0, then a box or a polygon"
    if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        return f"{count(len(numbers), 'number')} after the class; expected 4 of a box, or pairs"
    if not all(-BEYOND <= number <= 1 + BEYOND for number in numbers):
        return "expected shares of the image's width and height, from 0 to 1"
    return None


def names_of_classes(
    tree: Tree, found: Found, hints: Hints, rows: dict[str, list[Row]], labels: dict[str, str]
) -> tuple[list[str], str]:
    """Return the names of all classes by their number, and what they are from."""
    if found.yaml:
        return names_of_yaml(tree.root, *found.yaml), found.yaml[0]
    if read := read_names(tree.root, tree):
        return read.names, read.file
    if hints.classes:
        return hints.classes, "--classes"
    numbers = sorted({row.label for many in rows.values() for row in many})
    raise UserError(
        f"{tree.root} numbers its classes ({some(numbers, 20)}) and has no names for them: give "
        "--classes, or write classes.txt with a name a line"
    )


def names_of_yaml(root: Path, name: str, content: dict[str, Any]) -> list[str]:
    """Return the names of a yaml file in their order: a list, or a mapping from numbers."""
    names = content["names"]
    if isinstance(names, dict):
        if sorted(map(str, names)) != sorted(map(str, range(len(names)))):
            raise DataError(
                f"{root / name}: 'names' has the numbers {some(names)}; expected 0 to "
                f"{len(names) - 1}"
            )
        names = [names[key] for key in sorted(names, key=int)]
    if not isinstance(names, list) or not names:
        raise DataError(f"{root / name}: expected 'names' to be a list or a mapping from numbers")
    for number, text in enumerate(names):
        if not isinstance(text, str | int | float) or isinstance(text, bool):
            raise DataError(f"{root / name}: name {number} is {text!r} in yaml; put it into quotes")
    total = content.get("nc", len(names))
    if total != len(names):
        raise DataError(f"{root / name}: 'nc' is {total!r}, but 'names' has {len(names)}")
    return [str(text).strip() for text in names]


def check_labels(
    root: Path,
    labels: dict[str, str],
    rows: dict[str, list[Row]],
    categories: list[str],
    source: str,
) -> None:
    """Raise DataError at the first object whose class has no name."""
    for image, many in rows.items():
        for number, row in enumerate(many, 1):
            if row.label >= len(categories):
                raise DataError(
                    f"{root / labels[image]}, object {number}: class {row.label}, but {source} "
                    f"has the names 0 to {len(categories) - 1} ({some(categories)})"
                )


def convert(
    tree: Tree, names: list[str], rows: dict[str, list[Row]], categories: list[str]
) -> Split:
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
