"""Make the splits of a data set complete: a validation split where the folder has none."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from ..errors import DataError, UserError
from .layout import SPLITS, Hints
from .report import count, few
from .tree import Tree, read_lines, stem_of

ALL = "all"  # what belongs to no split by its name
T = TypeVar("T")


@dataclass
class Part:
    """Name the images of a split.

    Attributes:
        source: the split of the folder that they are from, or `ALL`.
        names: the images.
        whole: whether they are all that the source has.
    """

    source: str
    names: list[str]
    whole: bool = True


def ordered(found: Mapping[str, T]) -> dict[str, T]:
    """Put what was found of each split into the order train, val, test, `ALL`."""
    return {split: found[split] for split in (*SPLITS, ALL) if split in found}


def complete(
    tree: Tree,
    found: Mapping[str, list[str]],
    hints: Hints,
    notes: list[str],
    group: Callable[[str], str] = lambda name: "",
) -> dict[str, Part]:
    """Complete the splits that a folder has.

    Args:
        tree: of the data set, for messages.
        found: names of images by `train`, `val`, `test`, and `ALL` for those of no split.
        hints: says which share of the training images is for validation where there is no split.
        notes: get a line for what was decided.
        group: the group of an image's name; each group is shared out by itself.

    Returns:
        The images by split; `train` and `val` are always there.

    Raises:
        UserError: if there is nothing to train or to validate with.
    """
    parts = {split: Part(split, found[split]) for split in SPLITS if found.get(split)}
    if found.get(ALL):
        if "train" in parts:
            notes.append(f"passed over: {count(len(found[ALL]), 'images')} of no split")
        else:
            parts["train"] = Part(ALL, found[ALL])
    if "train" not in parts:
        has = f"only {' and '.join(parts)}" if parts else "no images"
        raise UserError(f"{tree.root} has {has}; expected a split 'train'")
    if "val" in parts:
        if hints.val is not None:
            notes.append("--val is not used: the folder has a validation split")
    elif hints.val is not None:
        source, names = parts["train"].source, parts["train"].names
        train, val = share_out(names, hints.val, hints.seed, group)
        parts |= {"train": Part(source, train, False), "val": Part(source, val, False)}
        notes.append(
            f"validation: {len(val)} of {count(len(names), 'training images')}, drawn with seed "
            f"{hints.seed}"
        )
    elif "test" in parts:
        parts["val"] = parts["test"]
        notes.append("validation: the test split, as the folder has no other (or give --val 0.2)")
    else:
        raise UserError(
            f"{tree.root} has no validation split: add --val 0.2 to draw a fifth of the training "
            "images"
        )
    return {split: parts[split] for split in SPLITS if split in parts}


def share_out(
    names: list[str], share: float, seed: int, group: Callable[[str], str]
) -> tuple[list[str], list[str]]:
    """Draw a share of some names, the same on every machine, from each group by itself.

    Returns:
        What remains and what was drawn, each in the order of `names`; at least one name is drawn,
        and at least one of each group remains.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: lot(name, seed)):
        groups.setdefault(group(name), []).append(name)
    drawn: set[str] = set()
    for members in groups.values():
        drawn.update(members[: min(round(share * len(members)), len(members) - 1)])
    if not drawn:
        largest = max(groups.values(), key=len)
        if len(largest) < 2:
            raise UserError(f"{count(len(names), 'images')} cannot be split for --val")
        drawn.add(largest[0])
    return [n for n in names if n not in drawn], [n for n in names if n in drawn]


def lot(name: str, seed: int) -> str:
    """Draw a name's place: of its letters and the seed alone, not of any library's generator."""
    return hashlib.sha256(f"{seed} {name}".encode()).hexdigest()


def read_lists(
    tree: Tree, folder: str, image_of: Mapping[str, str], needed: str, notes: list[str]
) -> dict[str, list[str]]:
    """Read the lists of images by split, as Pascal VOC has them; none where there are none.

    Args:
        tree: of the data set.
        folder: of the lists, such as `ImageSets/Main`; `trainval.txt` counts without `train.txt`.
        image_of: the image of each name that a list may have.
        needed: what a list's names need besides an image, for messages.
        notes: get a line for each list.

    Raises:
        DataError: if a list names what is not there; a test split may be missing as a whole.
    """
    there = tree.folders.get(folder, [])
    files = {split: f"{split}.txt" for split in SPLITS}
    files["train"] = "train.txt" if "train.txt" in there else "trainval.txt"
    found: dict[str, list[str]] = {}
    for split, file in files.items():
        if file not in there:
            continue
        lines = read_lines(tree.root / folder / file)
        stems = [stem_of(f"{line}.") for line in dict.fromkeys(lines)]
        missing = [stem for stem in stems if stem not in image_of]
        if missing and split == "test" and len(missing) == len(stems):
            notes.append(f"passed over: {folder}/{file}, whose images or {needed}s are not there")
        elif missing:
            raise DataError(
                f"{tree.root / folder / file} lists {few(missing)}, without an image or {needed} "
                f"({len(missing)} of {len(stems)})"
            )
        else:
            found[split] = [image_of[stem] for stem in stems]
            notes.append(f"{split}: {folder}/{file} ({count(len(stems), 'images')})")
    return found


def note_overlap(parts: dict[str, Part], notes: list[str]) -> None:
    """Note the training images that are in another split, too; names are from one folder."""
    train = set(parts["train"].names)
    for split in ("val", "test"):
        if split in parts and (both := len(train.intersection(parts[split].names))):
            verb = "is" if both == 1 else "are"
            notes.append(
                f"{count(both, 'images')} of {split} {verb} also in train: figures will be too good"
            )
