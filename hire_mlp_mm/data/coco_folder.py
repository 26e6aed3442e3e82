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
from .layout import SPLITS, Hints, Layout, Split
from .splits import ALL, Part, complete
from .tree import Tree, belongs, count, last, parent, some, split_of, split_of_folder, stem_of

KIND = "COCO json"
# Of several files for a split, the first kind of this list is taken.
FIRST, USUAL, OTHER = range(3)
OF_OTHER_TASKS = ("caption", "keypoint", "panoptic", "stuff", "image_info", "lvis", "results")


@dataclass
class CocoFile:
    """Hold a COCO file that was found: its name relative to the folder, and its content."""

    name: str
    content: dict[str, Any]


def find(tree: Tree) -> dict[str, CocoFile]:
    """Find the COCO file of each split; none where there are no such files.

    Raises:
        DataError: if a file whose name says COCO is no json.
    """
    images = {(parent(name), stem_of(name)) for name in tree.images()}
    files: dict[str, list[str]] = {}
    for name in tree.files(".json"):
        # A file for each image is another format.
        if belongs(parent(name)) and (parent(name), stem_of(name)) not in images:
            split = split_of(stem_of(name)) or split_of_folder(parent(name)) or ALL
            files.setdefault(split, []).append(name)
    found = {}
    for split, names in files.items():
        for name in sorted(names, key=lambda name: (rank(name), name)):
            content = load(tree.root / name, must_be_json=rank(name) == FIRST or split != ALL)
            if is_coco(content):
                check_records(tree.root / name, content)
                found[split] = CocoFile(name, content)
                break
    return found


def rank(name: str) -> int:
    """Rank a json file by its name: the lower, the likelier it has the objects of a split."""
    stem = stem_of(name).lower()
    if any(word in stem for word in OF_OTHER_TASKS):
        return OTHER
    return FIRST if "instances" in stem or "coco" in stem or "annotations" in stem else USUAL


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
    """Raise DataError where a list of a COCO file has what is no record, or an unnamed category."""
    fields = {"images": ("file_name",), "annotations": (), "categories": ("name",)}
    for key, needed in fields.items():
        for fault in faults.of_records(content[key], key, needed):
            raise DataError(f"{path}{fault}")
    for category in content["categories"]:
        if not isinstance(category["name"], str):
            raise DataError(
                f"{path} has a category with the name {short(repr(category['name']))}; expected "
                "text in quotes"
            )


def read(tree: Tree, found: dict[str, CocoFile], hints: Hints) -> Layout:
    """Describe the data set of COCO files.

    Raises:
        DataError: if a file's images are not in the folder, or its categories have no names.
        UserError: if there is no split to validate with.
    """
    notes: list[str] = []
    found = {split: found[split] for split in (*SPLITS, ALL) if split in found}
    folders = {split: images_of(tree, file, split, notes) for split, file in found.items()}
    for split, name in not_taken(tree, found):
        notes.append(f"not taken for {split}: {name}")
    names = {split: names_of(file) for split, file in found.items()}
    parts = complete(tree.root, names, hints, notes)
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
            f"{tree.root / file.name}: none of its {count(len(names), 'image')}{example} is in "
            f"{tree.root}{turned}"
        )
    folder = max(votes, key=lambda f: (votes[f], split_of_folder(f) == split, -f.count("/"), f))
    objects = len(file.content["annotations"])
    notes.append(
        f"{split}: {file.name}, images in {folder or '.'} "
        f"({count(len(names), 'image')}, {count(objects, 'object')})"
    )
    if votes[folder] < len(names):
        missing = [name for name in names if not (tree.root / folder / name).is_file()]
        notes.append(f"{split}: {count(len(missing), 'image')} not in the folder: {some(missing)}")
    return folder


def not_taken(tree: Tree, found: dict[str, CocoFile]) -> list[tuple[str, str]]:
    """List the json files beside those that were taken, with their split."""
    taken = {file.name for file in found.values()}
    beside = {parent(name) for name in taken}
    others = [n for n in tree.files(".json") if parent(n) in beside and n not in taken]
    return [(split_of(stem_of(n)) or split_of_folder(parent(n)) or ALL, n) for n in others]


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
