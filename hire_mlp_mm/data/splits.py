"""Make the splits of a data set complete: a validation split where the folder has none."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .layout import SPLITS, Hints
from .tree import count

ALL = "all"  # what belongs to no split by its name


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


def complete(
    root: Path,
    found: dict[str, list[str]],
    hints: Hints,
    notes: list[str],
    group: Callable[[str], str] = lambda name: "",
) -> dict[str, Part]:
    """Complete the splits that a folder has.

    Args:
        root: the data set's folder, for messages.
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
            notes.append(f"passed over: {count(len(found[ALL]), 'image')} of no split")
        else:
            parts = {"train": Part(ALL, found[ALL]), **parts}
    if "train" not in parts:
        has = f"only {' and '.join(parts)}" if parts else "no images"
        raise UserError(f"{root} has {has}; expected a split 'train'")
    if "val" in parts:
        if hints.val is not None:
            notes.append("--val is not used: the folder has a validation split")
    elif hints.val is not None:
        source, names = parts["train"].source, parts["train"].names
        train, val = share_out(names, hints.val, hints.seed, group)
        parts |= {"train": Part(source, train, False), "val": Part(source, val, False)}
        notes.append(
            f"validation: {len(val)} of {count(len(names), 'training image')}, drawn with seed "
            f"{hints.seed}"
        )
    elif "test" in parts:
        parts["val"] = parts["test"]
        notes.append("validation: the test split, as the folder has no other (or give --val 0.2)")
    else:
        raise UserError(
            f"{root} has no validation split: add --val 0.2 to draw a fifth of the training images"
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
    for name in names:
        groups.setdefault(group(name), []).append(name)
    drawn: set[str] = set()
    for members in groups.values():
        members = sorted(members, key=lambda name: lot(name, seed))
        drawn.update(members[: min(round(share * len(members)), len(members) - 1)])
    if not drawn:
        rest = max(groups.values(), key=len)
        if len(rest) < 2:
            raise UserError(f"{count(len(names), 'image')} cannot be split for --val")
        drawn.add(min(rest, key=lambda name: lot(name, seed)))
    return [n for n in names if n not in drawn], [n for n in names if n in drawn]


def lot(name: str, seed: int) -> str:
    """Draw a name's place: of its letters and the seed alone, not of any library's generator."""
    return hashlib.sha256(f"{seed} {name}".encode()).hexdigest()


def note_overlap(parts: dict[str, Part], notes: list[str]) -> None:
    """Note the training images that are in another split, too; names are from one folder."""
    train = set(parts["train"].names)
    for split in ("val", "test"):
        if split in parts and (both := len(train.intersection(parts[split].names))):
            notes.append(
                f"{count(both, 'image')} of {split} is also in train: figures will be too good"
            )
