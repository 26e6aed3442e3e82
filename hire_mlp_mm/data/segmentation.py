"""Understand folders of images beside folders of masks, whichever way they are arranged."""

from __future__ import annotations

import bisect
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import UserError
from .labelling import understand
from .layout import SPLITS, Hints, Layout, Split
from .mask_files import scan_masks
from .splits import ALL, Part, complete, note_overlap
from .tree import (
    IMAGE_WORDS,
    IMAGES,
    MASK_WORDS,
    Tree,
    belongs,
    count,
    join,
    plain_part,
    read_lines,
    some,
    split_of,
    suffix_of,
)

KIND = "images and masks"
BESIDE = ("_mask", "_masks", "_label", "_labels", "_gt", "_seg", "_L", "_annot", "_labelIds")
NOT_LABELS = ("color", "instance", "overlay", "polygon", "viz")  # in suffixes of other pictures
# Of several masks of an image, the first of these is taken.
BEST = ("labeltrainids", "labelids", "")
LISTS = "ImageSets/Segmentation"
SAMPLE = 50  # images whose names tell how their masks are called
PICTURES = IMAGES | {".gif"}  # as which masks are written


@dataclass
class Pairs:
    """Hold images and their masks of a split.

    Attributes:
        images: their folder, relative to the data set's.
        masks: the folder of the masks.
        names: of the images, relative to their folder.
        mask_names: of the masks, relative to their folder.
        others: other folders that may be of masks.
    """

    images: str
    masks: str
    names: list[str] = field(default_factory=list)
    mask_names: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


@dataclass
class Suffixes:
    """Hold how an image and its mask are called: the same, but for these ends."""

    image: str
    mask: str


def find(tree: Tree) -> dict[str, Pairs]:
    """Find the folders of images and of masks of each split; none where there are no masks."""
    found = dict(pair_folders(tree))
    return found or dict(pair_in_folders(tree))


def pair_folders(tree: Tree) -> Iterator[tuple[str, Pairs]]:
    """Yield the folders of masks that have a folder of images, by split."""
    images: dict[str, list[str]] = {}
    masks: dict[str, list[str]] = {}
    for folder, names in tree.folders.items():
        if belongs(folder) and any(suffix_of(name) in PICTURES for name in names):
            key, is_mask = key_of(folder)
            (masks if is_mask else images).setdefault(key, []).append(folder)
    grouped: dict[str, Pairs] = {}
    for key in [key for key in masks if key in images]:
        split = next(filter(None, map(split_of, key.split("/"))), None) or ALL
        image, mask = (max(of[key], key=lambda f: len(tree.folders[f])) for of in (images, masks))
        tops = top_of(image, is_mask=False), top_of(mask, is_mask=True)
        pairs = grouped.setdefault(split, Pairs(*tops))
        pairs.others += [folder for folder in masks[key] if folder != mask]
        if (pairs.images, pairs.masks) == tops:
            add_names(tree, pairs, image, mask)
        else:
            pairs.others.append(mask)
    yield from grouped.items()


def key_of(folder: str) -> tuple[str, bool]:
    """Return what a folder of images and that of its masks share, and whether it has masks."""
    parts = []
    is_mask = False
    for part in folder.split("/"):
        plain = plain_part(part)
        if part.lower() in MASK_WORDS or plain != part:
            is_mask = True
        if part.lower() not in MASK_WORDS | IMAGE_WORDS:
            parts.append(plain)
    return "/".join(parts), is_mask


def top_of(folder: str, is_mask: bool) -> str:
    """Return the part of a folder's name up to its split and its word for images or masks."""
    parts = folder.split("/")
    words = MASK_WORDS if is_mask else IMAGE_WORDS
    telling = [
        i for i, part in enumerate(parts) if part.lower() in words or split_of(plain_part(part))
    ]
    return "/".join(parts[: telling[-1] + 1]) if telling else ""


def add_names(tree: Tree, pairs: Pairs, image: str, mask: str) -> None:
    """Add the files of a folder of images and of a folder of masks."""
    inside = image[len(pairs.images) :].strip("/")
    names = [name for name in tree.folders[image] if suffix_of(name) in IMAGES]
    pairs.names += [join(inside, name) for name in names]
    inside = mask[len(pairs.masks) :].strip("/")
    pairs.mask_names += [join(inside, n) for n in tree.folders[mask] if suffix_of(n) in PICTURES]


def pair_in_folders(tree: Tree) -> Iterator[tuple[str, Pairs]]:
    """Yield the folders in which images and masks lie together, such as x.jpg and x_mask.png."""
    for folder, files in tree.folders.items():
        names = [name for name in files if suffix_of(name) in IMAGES]
        stems = {os.path.splitext(name)[0] for name in names}
        masks = [name for name in names if is_beside(name, stems)]
        if masks and belongs(folder):
            split = next(filter(None, map(split_of, folder.split("/"))), None) or ALL
            images = [name for name in names if name not in set(masks)]
            yield split, Pairs(folder, folder, images, masks)


def is_beside(name: str, stems: set[str]) -> bool:
    """Say whether a file is the mask of an image whose stem is among some."""
    stem = os.path.splitext(name)[0]
    return any(stem.endswith(end) and stem[: -len(end)] in stems for end in BESIDE)


def read(tree: Tree, found: dict[str, Pairs], hints: Hints) -> Layout:
    """Describe the data set of images and masks.

    Raises:
        UserError: if masks are not called as their images, have values of no class, or the classes
            have no names; or if there is no split to validate with.
        DataError: if a mask cannot be read.
    """
    notes: list[str] = []
    found = {split: found[split] for split in (*SPLITS, ALL) if split in found}
    suffixes = suffixes_of(tree, found)
    mine = {split: matched(pairs, suffixes, split, notes) for split, pairs in found.items()}
    listed = split_by_lists(tree, mine, suffixes, notes)
    parts = complete(tree.root, listed or mine, hints, notes)
    if listed:
        note_overlap(parts, notes)
    sources = {split: found[ALL if listed else part.source] for split, part in parts.items()}
    masks = [
        join(sources[split].masks, name.removesuffix(suffixes.image) + suffixes.mask)
        for split, part in parts.items()
        for name in part.names
    ]
    scan = scan_masks(tree.root, list(dict.fromkeys(masks)))
    meaning = understand(tree, scan, hints, notes)
    splits = {
        split: describe_split(tree, sources[split], part, suffixes, bool(listed))
        for split, part in parts.items()
    }
    return Layout(
        "segmentation",
        KIND,
        tree.root,
        meaning.classes,
        splits,
        palette=meaning.palette,
        reduce_zero_label=meaning.reduce_zero_label,
        ignore_index=meaning.ignore_index,
        image_suffix=suffixes.image,
        mask_suffix=suffixes.mask,
        mask_table=meaning.table,
        notes=notes,
    )


def suffixes_of(tree: Tree, found: dict[str, Pairs]) -> Suffixes:
    """Learn from the names how images and their masks are called.

    Raises:
        UserError: if no mask is called as its image.
    """
    votes: Counter[tuple[str, str]] = Counter()
    for pairs in found.values():
        masks = sorted(pairs.mask_names)
        for name in pairs.names[:: max(1, len(pairs.names) // SAMPLE)]:
            votes.update(candidates(name, masks))
    best = max(votes, key=lambda v: (votes[v], -preference(v[1]), -len(v[1]), v), default=None)
    if best is None:
        pairs = next(iter(found.values()))
        image, mask = (some(names[:1]) for names in (pairs.names, pairs.mask_names))
        raise UserError(
            f"{tree.root}: no mask in {pairs.masks or '.'} (such as {mask}) is called as an image "
            f"in {pairs.images or '.'} (such as {image}); expected the same name, but for its end"
        )
    return Suffixes(*best)


def preference(mask_suffix: str) -> int:
    """Rank the end of a mask's name: the lower, the likelier it has labels."""
    low = mask_suffix.lower()
    if any(word in low for word in NOT_LABELS):
        return len(BEST)
    return next(i for i, word in enumerate(BEST) if word in low)


def candidates(name: str, masks: list[str]) -> set[tuple[str, str]]:
    """Return the ends in which an image and the masks (sorted) of the most alike names differ."""
    at = bisect.bisect_left(masks, name)
    near = [mask for mask in masks[max(0, at - 8) : at + 8] if mask.count("/") == name.count("/")]
    stem = os.path.splitext(name)[0]
    common = {mask: common_start(stem, mask) for mask in near}
    if stem not in common.values():  # they differ in more than a suffix
        common = {mask: start.rstrip("._-") for mask, start in common.items()}
    most = max(map(len, common.values()), default=0)
    least = len(name.rpartition("/")[0]) + 1
    return {
        (name[most:], mask[most:])
        for mask, start in common.items()
        if len(start) == most and most >= least and mask[most:].lower().endswith(suffix_of(mask))
    }


def common_start(one: str, other: str) -> str:
    """Return the letters with which two names begin."""
    same = (a == b for a, b in zip(one, other, strict=False))
    return one[: sum(itertools.takewhile(bool, same))]


def matched(pairs: Pairs, suffixes: Suffixes, split: str, notes: list[str]) -> list[str]:
    """Return the images of a split that have a mask, and note the files without their like."""
    masks = set(pairs.mask_names)
    names: list[str] = []
    lone: list[str] = []
    others: Counter[str] = Counter()
    for name in pairs.names:
        if not name.endswith(suffixes.image):
            others[os.path.splitext(name)[1]] += 1
            continue
        mask = name.removesuffix(suffixes.image) + suffixes.mask
        (names if mask in masks else lone).append(name)
        masks.discard(mask)
    notes.append(
        f"{split}: {count(len(names), 'image')} ({pairs.images or '.'}/*{suffixes.image}) with "
        f"masks ({pairs.masks or '.'}/*{suffixes.mask})"
    )
    if pairs.others:
        notes.append(f"not taken for {split}: masks in {some(pairs.others)}")
    for suffix, number in others.items():
        if pairs.images != pairs.masks or suffix not in suffixes.mask:
            notes.append(
                f"passed over for {split}: {count(number, 'image')} that end in {suffix}, not in "
                f"{suffixes.image}"
            )
    if lone:
        notes.append(
            f"passed over for {split}: {count(len(lone), 'image')} without mask: {some(lone)}"
        )
    if rest := [mask for mask in masks if mask.endswith(suffixes.mask)]:
        notes.append(
            f"passed over for {split}: {count(len(rest), 'mask')} without image: "
            f"{some(sorted(rest))}"
        )
    return names


def split_by_lists(
    tree: Tree, mine: dict[str, list[str]], suffixes: Suffixes, notes: list[str]
) -> dict[str, list[str]]:
    """Split the images by the lists of a Pascal VOC folder; none where it has no lists."""
    if LISTS not in tree.folders or list(mine) != [ALL]:
        return {}
    known = set(mine[ALL])
    found = {}
    for split in SPLITS:
        if f"{split}.txt" in tree.folders[LISTS]:
            lines = read_lines(tree.root / LISTS / f"{split}.txt")
            names = [f"{line}{suffixes.image}" for line in dict.fromkeys(lines)]
            if missing := [name for name in names if name not in known]:
                raise UserError(
                    f"{tree.root / LISTS / split}.txt lists {some(missing)}, without image or mask"
                )
            found[split] = names
            notes.append(f"{split}: {LISTS}/{split}.txt ({count(len(names), 'image')})")
    return found


def describe_split(tree: Tree, pairs: Pairs, part: Part, suffixes: Suffixes, listed: bool) -> Split:
    """Describe a split; its images are named where MMSegmentation would find others, too."""
    mine = [name for name in pairs.names if name.endswith(suffixes.image)]
    if pairs.images == pairs.masks:  # a mask may end as an image does
        mine += [name for name in pairs.mask_names if name.endswith(suffixes.image)]
    whole = part.whole and not listed and len(mine) == len(part.names)
    names = None if whole else part.names
    return Split(tree.root / pairs.images, tree.root / pairs.masks, names=names)
