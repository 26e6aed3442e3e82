"""Understand a folder per class: the classes of all splits, and the images of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ..errors import UserError
from .folders import SUFFIXES
from .layout import SPLITS, Hints, Layout, Split
from .report import count, few, listed
from .splits import ALL, Part, complete, ordered
from .tree import IMAGES, Tree, join, parent, role_of, split_of, suffix_of

KIND = "a folder per class"


@dataclass
class ClassFolders:
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


def find(tree: Tree) -> dict[str, ClassFolders]:
    """Find the folders of the classes of each split; none where they are of something else."""
    tops = {split_of(folder): folder for folder in reversed(tree.tops())}  # the first of each
    folders = {split: tops[split] for split in SPLITS if split in tops}
    folders = folders if "train" in folders else {ALL: ""}
    found = {split: list_classes(tree, folder) for split, folder in folders.items()}
    classes = {name for part in found.values() for name, images in part.images.items() if images}
    several = len(classes) > 1 or (ALL not in found and classes)
    return found if several and not any(map(is_other, found.values())) else {}


def list_classes(tree: Tree, folder: str) -> ClassFolders:
    """List the images of each class of a split."""
    found = ClassFolders(folder)
    start = f"{folder}/" if folder else ""
    for place, files in tree.folders.items():
        inside = f"{place}/".removeprefix(start).strip("/")
        if not inside or not place.startswith(start):
            continue
        images = [name for name in files if suffix_of(name) in IMAGES]
        found.images.setdefault(class_of(inside), []).extend(join(inside, n) for n in images)
        found.others.update(suffix_of(n) or "without suffix" for n in {*files}.difference(images))
    found.loose = [name for name in tree.folders[folder] if suffix_of(name) in IMAGES]
    return found


def class_of(name: str) -> str:
    """Return the class of an image: the first folder of its name."""
    return name.partition("/")[0]


def is_other(found: ClassFolders) -> bool:
    """Tell whether folders are parts of another kind of data set, such as `images` or `train`."""
    for name, images in found.images.items():
        within = {part for image in images for part in parent(image).split("/")[1:]}
        if images and (role_of(name) or any(role_of(part) or split_of(part) for part in within)):
            return True
    return False


def read(tree: Tree, found: dict[str, ClassFolders], hints: Hints) -> Layout:
    """Describe the data set of a folder per class.

    Raises:
        UserError: if a split has no folders, or a class that is not trained.
    """
    notes: list[str] = []
    found = ordered(found)
    for split in [split for split, part in found.items() if not any(part.images.values())]:
        pass_without_folders(tree, found.pop(split), split, notes)
    classes = sorted({name for part in found.values() for name in part.images if part.images[name]})
    classes = chosen(classes, hints, notes)
    for split, part in found.items():
        note_passed(part, split, classes, notes)
    beside = {*tree.tops()}.difference(part.folder for part in found.values())
    if ALL not in found:
        notes += listed((i for top in sorted(beside) for i in tree.images(top)), "images elsewhere")
    names = {
        split: [name for c in classes for name in part.images.get(c, ())]
        for split, part in found.items()
    }
    parts = complete(tree, names, hints, notes, group=class_of)
    check_classes(tree, parts, classes, notes)
    splits = {
        split: describe_split(tree, found[part.source], part, classes)
        for split, part in parts.items()
    }
    return Layout("classification", KIND, tree.root, classes, splits, notes=notes)


def pass_without_folders(tree: Tree, part: ClassFolders, split: str, notes: list[str]) -> None:
    """Pass over a test split without labels; refuse any other split without them."""
    images = count(len(part.loose), "images")
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
        raise UserError(f"--classes has {few(unknown)}; the folders are {few(classes, 20)}")
    notes += listed([n for n in classes if n not in hints.classes], "folders not among --classes")
    return hints.classes


def note_passed(part: ClassFolders, split: str, classes: list[str], notes: list[str]) -> None:
    """Note what lies in a split's folder and is no image of a class."""
    before = f"passed over in {split}: "
    images = sum(len(part.images.get(name, ())) for name in classes)
    notes.append(f"{split}: {part.folder or '.'} ({count(images, 'images')})")
    empty = [name for name, images in part.images.items() if not images]
    notes += listed(empty, "folders without images", before)
    notes += listed(part.loose, "images in no class's folder", before)
    if part.others:
        kinds = ", ".join(f"{number} {suffix}" for suffix, number in part.others.items())
        notes.append(f"{before}files that are no images: {kinds}")


def check_classes(tree: Tree, parts: dict[str, Part], classes: list[str], notes: list[str]) -> None:
    """Refuse a class that is not trained, and note those that a split lacks."""
    for split, part in parts.items():
        there = {class_of(name) for name in part.names}
        lacking = few(name for name in classes if name not in there)
        if lacking and split == "train":
            raise UserError(
                f"{tree.root}: the training images have no {lacking}, which other splits have; "
                "move those folders away, or leave them out of --classes"
            )
        if lacking:
            notes.append(f"{split} has no image of {lacking}; labels are those of all classes")


def describe_split(tree: Tree, found: ClassFolders, part: Part, classes: list[str]) -> Split:
    """Describe a split; its images are named where MMPretrain would label its folders otherwise."""
    there = sorted(found.images)  # MMPretrain takes all folders, in this order
    plain = part.whole and there == classes and all(found.images.values())
    known = all(suffix_of(name) in SUFFIXES for name in part.names)
    return Split(tree.root / found.folder, names=None if plain and known else part.names)
