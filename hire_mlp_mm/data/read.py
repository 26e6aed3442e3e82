"""Understand the data set that lies in a folder, whichever of the usual formats it has."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from . import class_folders, coco_folder, segmentation, voc, yolo
from .layout import Hints, Layout
from .report import count, few
from .tree import Tree, suffix_of

ARCHIVES = frozenset((".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"))
EXPECTED = (
    "COCO json, Pascal VOC .xml, YOLO .txt with a .yaml, folders of images and of masks, or a "
    "folder per class"
)


class Reader(NamedTuple):
    """Name a format, and the functions that find and read it.

    Attributes:
        kind: the format, in words.
        task: one of `layout.TASKS`.
        find: returns what there is of the format, something false where there is nothing.
        read: describes what was found.
    """

    kind: str
    task: str
    find: Callable[[Tree], Any]
    read: Callable[[Tree, Any, Hints], Layout]


# The first that finds something is taken: what holds more of what a data set means comes first.
READERS = (
    Reader(coco_folder.KIND, "detection", coco_folder.find, coco_folder.read),
    Reader(voc.KIND, "detection", voc.find, voc.read),
    Reader(yolo.KIND, "detection", yolo.find, yolo.read),
    Reader(segmentation.KIND, "segmentation", segmentation.find, segmentation.read),
    Reader(class_folders.KIND, "classification", class_folders.find, class_folders.read),
)


def read_layout(folder: Path, hints: Hints | None = None) -> Layout:
    """Understand the data set that lies in a folder.

    Nothing is written. Annotations that are not COCO's are converted in memory.

    Args:
        folder: as a person has it.
        hints: what the files do not say themselves.

    Returns:
        The data set; its `notes` say what was understood, what was passed over and why.

    Raises:
        UserError: if there is no data set that is understood, or something is left to decide.
        DataError: if a file of the data set cannot be read or has what is no annotation.
    """
    folder, hints = Path(folder), hints or Hints()
    check_hints(hints)
    check_folder(folder)
    tree = Tree(folder)
    notes = []
    while not (found := find_all(tree, hints)) and len(tops := tree.tops()) == 1:
        notes.append(f"the data set is in the folder {tops[0]}")
        tree = Tree(tree.root / tops[0])
    if not found:
        raise UserError(not_understood(folder, tree, hints))
    (reader, what), *others = found
    layout = reader.read(tree, what, hints)
    number = count(len(layout.classes), "classes")
    notes.insert(0, f"{layout.kind}: {number} ({few(layout.classes, 20)})")
    if others:
        kinds = " and ".join(other.kind for other, _ in others)
        notes.append(f"{kinds} found, too; {reader.kind} says more of what the data mean")
    layout.notes = notes + layout.notes + tree.notes()
    return layout


def check_hints(hints: Hints) -> None:
    """Raise UserError where what a person says cannot be."""
    if hints.val is not None and not (math.isfinite(hints.val) and 0 < hints.val < 1):
        raise UserError(f"--val is {hints.val}; expected a share between 0 and 1, such as 0.2")
    if hints.ignore is not None and not 0 <= hints.ignore <= 255:
        raise UserError(f"--ignore is {hints.ignore}; expected a label from 0 to 255")
    names = hints.classes
    if names is not None and (not names or len(set(names)) < len(names) or not all(names)):
        raise UserError(f"--classes is {few(names)}; expected a name of its own for each class")


def check_folder(folder: Path) -> None:
    """Raise UserError where there is no folder to look into."""
    if folder.is_file():
        is_archive = suffix_of(folder.name) in ARCHIVES
        cure = "unpack it, and name the folder" if is_archive else "name the folder that holds it"
        raise UserError(f"{folder} is {'an archive' if is_archive else 'a file'}; {cure}")
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; expected the folder of a data set")


def find_all(tree: Tree, hints: Hints) -> list[tuple[Reader, Any]]:
    """Find the formats that a folder has, the one to take first."""
    readers = [reader for reader in READERS if hints.task in (None, reader.task)]
    found: list[tuple[Reader, Any]] = []
    for reader in readers:
        # An image of another format lies in folders, too.
        if not (found and reader.task == "classification") and (what := reader.find(tree)):
            found.append((reader, what))
    return found


def not_understood(folder: Path, tree: Tree, hints: Hints) -> str:
    """Say what lies in a folder, and what is understood."""
    if hints.task is not None:
        for reader in READERS:
            if reader.task != hints.task and reader.find(tree):
                return (
                    f"{folder} is a data set for {reader.task} ({reader.kind}), and the config is "
                    f"for {hints.task}"
                )
    tops = tree.tops()
    if inner := [top for top in tops if find_all(Tree(tree.root / top), hints)]:
        return f"{folder} has {len(inner)} data sets; name one of them: {few(inner)}"
    suffixes = Counter(
        suffix_of(name) or "without suffix" for names in tree.folders.values() for name in names
    )
    if not suffixes:
        return f"{folder} is empty; expected {EXPECTED}"
    files = ", ".join(f"{number} {suffix}" for suffix, number in suffixes.most_common(4))
    inside = f" in {few(tops)}" if tops else ""
    archive = next((suffix for suffix in suffixes if suffix in ARCHIVES), None)
    cure = f"; unpack the {archive} file first" if archive else ""
    return (
        f"{folder} is no data set that is understood ({files}{inside}){cure}; expected {EXPECTED}"
    )
