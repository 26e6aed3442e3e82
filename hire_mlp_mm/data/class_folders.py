"""Understand a folder per class: the classes of all splits, and the images of each."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field

from ..errors import UserError
from .folders import SUFFIXES
from .layout import SPLITS, Hints, Layout, Split
from .splits import ALL, Part, complete
from .tree import IMAGE_WORDS, IMAGES, MASK_WORDS, Tree, count, some, split_of, suffix_of

KIND = "a folder per class"


@dataclass
class Folders:
    """Hold the folders of a split.

    Attributes:
        folder: the split's, relative to the data set's.
        images: of each class, by its name, relative to `folder`.
        loose: images in no class's folder.
        others: files that are no images, by suffix.
    """

    folder: str
    images: dict[str, list[str]] = field(default_factory=dict)
    loose: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def names(self) -> list[str]:
        """Return all images that are in a class's folder."""
        return [name for names in self.images.values() for name in names]


def find(tree: Tree) -> dict[str, Folders]:
    """Find the folders of the classes of each split; none where they are of something else."""
    tops = [folder for folder in tree.folders if folder and "/" not in folder]
    named: dict[str, str] = {}
    for folder in tops:
        if (split := split_of(folder)) and split not in named:
            named[split] = folder
    found: dict[str, Folders] = {split: Folders(folder) for split, folder in named.items()}
    if "train" not in found:
        found = {ALL: Folders("")}
    for part in found.values():
        list_classes(tree, part)
    classes = {name for part in found.values() for name, images in part.images.items() if images}
    several = len(classes) > 1 or (ALL not in found and classes)
    return found if several and not any(map(is_other, found.values())) else {}


def is_other(part: Folders) -> bool:
    """Say whether folders are parts of another kind of data set, such as `images` or `train`."""
    names = {name for many in part.images.values() for name in many}
    folders = {folder.lower() for name in names for folder in name.split("/")[1:-1]}
    known = IMAGE_WORDS | MASK_WORDS
    inner = any(folder in known or split_of(folder) for folder in folders)
    return inner or any(name.lower() in known for name, many in part.images.items() if many)


def list_classes(tree: Tree, part: Folders) -> None:
    """List the images of each class of a split."""
    start = f"{part.folder}/" if part.folder else ""
    for folder, names in tree.folders.items():
        if folder != part.folder and not folder.startswith(start):
            continue
        inside = folder[len(start) :] if folder != part.folder else ""
        mine = part.images.setdefault(inside.split("/")[0], []) if inside else part.loose
        for name in names:
            if suffix_of(name) in IMAGES:
                mine.append(f"{inside}/{name}" if inside else name)
            elif inside:
                part.others[os.path.splitext(name)[1] or "no suffix"] += 1


def read(tree: Tree, found: dict[str, Folders], hints: Hints) -> Layout:
    """Describe the data set of a folder per class.

    Raises:
        UserError: if a split has no folders, or a class that is not trained.
    """
    notes: list[str] = []
    found = {split: found[split] for split in (*SPLITS, ALL) if split in found}
    for split in [split for split, part in found.items() if not any(part.images.values())]:
        pass_without_folders(tree, found.pop(split), split, notes)
    classes = sorted({name for part in found.values() for name in part.images if part.images[name]})
    classes = chosen(classes, hints, notes)
    for split, part in found.items():
        note_passed(part, split, classes, notes)
    names = {
        split: [name for c in classes for name in part.images.get(c, ())]
        for split, part in found.items()
    }
    parts = complete(tree.root, names, hints, notes, group=class_of)
    check_classes(tree, parts, classes, notes)
    splits = {
        split: describe_split(tree, found[part.source], part, classes)
        for split, part in parts.items()
    }
    return Layout("classification", KIND, tree.root, classes, splits, notes=notes)


def class_of(name: str) -> str:
    """Return the class of an image: the first folder of its name."""
    return name.partition("/")[0]


def pass_without_folders(tree: Tree, part: Folders, split: str, notes: list[str]) -> None:
    """Pass over a test split without labels; refuse any other split without them."""
    images = count(len(part.loose), "image")
    if split != "test" or not part.loose:
        raise UserError(
            f"{tree.root / part.folder} has {images} and no folder per class with images; expected "
            f"{part.folder}/CLASS/IMAGE"
        )
    notes.append(f"passed over: {part.folder} with {images} and no folder per class")


def chosen(classes: list[str], hints: Hints, notes: list[str]) -> list[str]:
    """Choose the classes that a person names, in that order."""
    if hints.classes is None:
        return classes
    if unknown := [name for name in hints.classes if name not in classes]:
        raise UserError(f"--classes names {some(unknown)}; the folders are {some(classes, 20)}")
    if others := [name for name in classes if name not in hints.classes]:
        notes.append(f"passed over: folders not among --classes: {some(others, 20)}")
    return list(hints.classes)


def note_passed(part: Folders, split: str, classes: list[str], notes: list[str]) -> None:
    """Note what lies in a split's folder and is no image of a class."""
    per_class = [len(part.images.get(name, ())) for name in classes]
    notes.append(f"{split}: {part.folder or '.'} ({count(sum(per_class), 'image')})")
    if empty := [name for name, images in part.images.items() if not images]:
        notes.append(f"passed over in {split}: folders without images: {some(empty)}")
    if part.loose:
        notes.append(
            f"passed over in {split}: {count(len(part.loose), 'image')} in no class's folder"
        )
    if part.others:
        kinds = ", ".join(f"{number} {suffix}" for suffix, number in part.others.items())
        notes.append(f"passed over in {split}: files that are no images: {kinds}")


def check_classes(tree: Tree, parts: dict[str, Part], classes: list[str], notes: list[str]) -> None:
    """Refuse a class that is not trained, and note those that a split lacks."""
    for split, part in parts.items():
        there = {class_of(name) for name in part.names}
        lacking = [name for name in classes if name not in there]
        if lacking and split == "train":
            raise UserError(
                f"{tree.root}: the training images have no {some(lacking)}, which other splits "
                "have; move those folders away, or leave them out of --classes"
            )
        if lacking:
            notes.append(
                f"{split} has no image of {some(lacking)}; labels are those of all classes"
            )


def describe_split(tree: Tree, folders: Folders, part: Part, classes: list[str]) -> Split:
    """Describe a split; its images are named where MMPretrain would label its folders otherwise."""
    there = sorted(folders.images)  # MMPretrain takes all folders, in this order
    plain = part.whole and there == classes and all(folders.images.values())
    known = all(suffix_of(name) in SUFFIXES for name in part.names)
    names = None if plain and known else part.names
    return Split(tree.root / folders.folder, names=names)
