"""Understand a folder with COCO json files: the file of each split, and where its images are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, short
from .coco import faults, read_coco
from .coco.masks import is_polygon
from .coco_content import choose_classes
from .layout import Hints, Layout, Split
from .report import count, listed
from .splits import ALL, Part, complete, ordered
from .tree import Tree, belongs, last, parent, split_of, split_of_folder, stem_of

KIND = "COCO json"
OF_OTHER_TASKS = ("caption", "keypoint", "panoptic", "stuff", "image_info", "lvis", "results")


@dataclass
class CocoFile:
    """Hold a COCO file that was found: its name relative to the folder, and its content."""

    name: str
    content: dict[str, Any]


def find(tree: Tree) -> dict[str, CocoFile]:
    """Find the COCO file of each split; none where there are no such files.

    Raises:
        DataError: if a file whose name says a split or COCO is no json.
    """
    images = {(parent(name), stem_of(name)) for name in tree.images()}
    files: dict[str, list[str]] = {}
    for name in tree.files((".json",)):
        # A file for each image is another format.
        if belongs(parent(name)) and (parent(name), stem_of(name)) not in images:
            files.setdefault(split_of_file(name), []).append(name)
    found = {}
    for split, names in files.items():
        for name in sorted(names, key=lambda name: (rank(name), name)):
            content = load(tree.root / name, must_be_json=split != ALL or rank(name) == 0)
            if is_coco(content):
                check_records(tree.root / name, content)
                found[split] = CocoFile(name, content)
                break
    return found


def split_of_file(name: str) -> str:
    """Return the split that a json file's name means, or else its folder's; `ALL` without."""
    return split_of(stem_of(name)) or split_of_folder(parent(name)) or ALL


def rank(name: str) -> int:
    """Rank a json file by its name: the lower, the likelier it has the objects of a split."""
    stem = stem_of(name).lower()
    if any(word in stem for word in OF_OTHER_TASKS):
        return 2
    return 0 if any(word in stem for word in ("instances", "coco", "annotations")) else 1


def load(path: Path, must_be_json: bool) -> Any:
    """Read a json file; None for a file that is no json and need not be."""
    try:
        return read_coco(path)
    except DataError:
        if must_be_json:
            raise
        return None


def is_coco(content: Any) -> bool:
    """Say whether a json file has the lists of a COCO file."""
    lists = ("images", "annotations", "categories")
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in lists)


def check_records(path: Path, content: dict[str, Any]) -> None:
    """Raise DataError where a list of a COCO file has what is no record, or a name is none."""
    needed = {"images": ("file_name",), "annotations": (), "categories": ("id", "name")}
    for key, fields in needed.items():
        for fault in faults.of_records(content[key], key, fields):
            raise DataError(f"{path}{fault}")
    for fault in faults.of_names(content["categories"], None):
        raise DataError(f"{path}{fault}")


def read(tree: Tree, found: dict[str, CocoFile], hints: Hints) -> Layout:
    """Describe the data set of COCO files.

    Raises:
        DataError: if a file's images are not in the folder, or its categories have no names.
        UserError: if there is no split to validate with.
    """
    notes: list[str] = []
    found = ordered(found)
    folders = {split: images_of(tree, file, split, notes) for split, file in found.items()}
    taken = {file.name for file in found.values()}
    for name in tree.files((".json",)):
        if name not in taken and parent(name) in map(parent, taken):
            notes.append(f"not taken for {split_of_file(name)}: {name}")
    names = {split: names_of(file) for split, file in found.items()}
    parts = complete(tree, names, hints, notes)
    first = found[parts["train"].source]
    categories = [category["name"] for category in first.content["categories"]]
    if group := group_of_all(found):
        categories.remove(group)
        notes.append(f"category {group!r} is left out: it has no object and groups the others")
    splits = {split: describe_split(tree, part, found, folders) for split, part in parts.items()}
    annotations = [a for part in parts.values() for a in found[part.source].content["annotations"]]
    masks = sum(has_mask(annotation) for annotation in annotations)
    if 0 < masks < len(annotations):
        notes.append(f"{len(annotations) - masks} of {len(annotations)} objects have no mask")
    classes = choose_classes(categories, hints, notes, first.name)
    has_masks = 0 < masks == len(annotations)
    return Layout("detection", KIND, tree.root, classes, splits, has_masks=has_masks, notes=notes)


def names_of(file: CocoFile) -> list[str]:
    """Return the file names of a COCO file's images."""
    return [str(image["file_name"]) for image in file.content["images"]]


def images_of(tree: Tree, file: CocoFile, split: str, notes: list[str]) -> str:
    """Find the folder to which a COCO file's file names are relative: it has most of them."""
    where: dict[str, list[str]] = {}
    for path in tree.images():
        where.setdefault(last(path), []).append(path)
    names = [name.removeprefix("./") for name in names_of(file)]
    votes: Counter[str] = Counter()
    for name in names:
        for path in where.get(last(name), ()):
            if path == name or path.endswith(f"/{name}"):
                votes[path[: -len(name)].rstrip("/")] += 1
    if not votes:
        example = f", such as {short(names[0])}" if names else ""
        turned = " (its names have \\ between folders; expected /)" if "\\" in example else ""
        raise DataError(
            f"{tree.root / file.name}: none of its {count(len(names), 'images')}{example} is in "
            f"{tree.root}{turned}"
        )
    folder = max(votes, key=lambda f: (votes[f], split_of_folder(f) == split, -f.count("/"), f))
    objects = len(file.content["annotations"])
    notes.append(
        f"{split}: {file.name}, images in {folder or '.'} "
        f"({count(len(names), 'images')}, {count(objects, 'objects')})"
    )
    if votes[folder] < len(names):
        missing = [name for name in names if not (tree.root / folder / name).is_file()]
        notes += listed(missing, "images not in the folder", f"{split}: ")
    return folder


def group_of_all(found: dict[str, CocoFile]) -> str | None:
    """Return the category that only groups all others, as some programs write it."""
    contents = [file.content for file in found.values()]
    categories = [category for content in contents for category in content["categories"]]
    used = {repr(a.get("category_id")) for content in contents for a in content["annotations"]}
    learnt = [category for category in categories if repr(category.get("id")) in used]
    groups = {str(category.get("supercategory")) for category in learnt}
    names = {category.get("name") for category in categories}
    alone = groups & (names - {category.get("name") for category in learnt})
    return alone.pop() if len(groups) == 1 and alone else None


def has_mask(annotation: dict[str, Any]) -> bool:
    """Say whether an annotation has polygons or a run-length encoded mask."""
    mask = annotation.get("segmentation")
    if isinstance(mask, dict):
        return "counts" in mask and "size" in mask
    return isinstance(mask, list) and bool(mask) and all(map(is_polygon, mask))


def describe_split(
    tree: Tree, part: Part, found: dict[str, CocoFile], folders: dict[str, str]
) -> Split:
    """Describe a split: by its file, or by the content of a file that is yet to be written."""
    file, images = found[part.source], tree.root / folders[part.source]
    if part.whole:
        return Split(images, tree.root / file.name)
    return Split(images, coco=keep_images(file.content, set(part.names)))


def keep_images(content: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Return a COCO file's content with the named images and their annotations alone."""
    images = [image for image in content["images"] if str(image["file_name"]) in names]
    ids = {repr(image.get("id")) for image in images}  # of whatever type, until it is checked
    annotations = [a for a in content["annotations"] if repr(a.get("image_id")) in ids]
    return {**content, "images": images, "annotations": annotations}
