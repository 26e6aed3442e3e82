"""Understand folders of images beside folders of masks, whichever way they are arranged."""

from __future__ import annotations

import bisect
import os
from collections import Counter
from dataclasses import asdict, dataclass, field

from ..errors import UserError
from .labelling import understand
from .layout import Hints, Layout, Split
from .listing import files_under
from .mask_files import scan_masks
from .report import count, few, listed
from .splits import ALL, Part, complete, note_overlap, ordered, read_lists
from .tree import (
    IMAGES,
    WORDS_OF_SPLITS,
    Tree,
    belongs,
    join,
    parent,
    relative,
    role_of,
    split_of,
    split_of_folder,
    stem_of,
    suffix_of,
    words_of,
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

    def mask_of(self, name: str) -> str:
        """Return the name of an image's mask."""
        return name.removesuffix(self.image) + self.mask


# Folders -----------------------------------------------------------------------------------------


def find(tree: Tree) -> dict[str, Pairs]:
    """Find the folders of images and of masks of each split; none where there are no masks."""
    return pair_folders(tree) or pair_in_folders(tree)


def pair_folders(tree: Tree) -> dict[str, Pairs]:
    """Pair the folders of masks that have a folder of images, by split."""
    images: dict[str, list[str]] = {}
    masks: dict[str, list[str]] = {}
    for folder, names in tree.folders.items():
        if belongs(folder) and any(suffix_of(name) in PICTURES for name in names):
            (masks if is_of_masks(folder) else images).setdefault(key_of(folder), []).append(folder)
    found: dict[str, Pairs] = {}
    for key in [key for key in masks if key in images]:
        image, mask = (max(of[key], key=lambda f: len(tree.folders[f])) for of in (images, masks))
        tops = top_of(image, "images"), top_of(mask, "masks")
        pairs = found.setdefault(split_of_folder(key) or ALL, Pairs(*tops))
        pairs.others += [folder for folder in masks[key] if folder != mask]
        if (pairs.images, pairs.masks) != tops:
            pairs.others.append(mask)
            continue
        for names, folder, top, suffixes in (
            (pairs.names, image, pairs.images, IMAGES),
            (pairs.mask_names, mask, pairs.masks, PICTURES),
        ):
            files = [join(folder, n) for n in tree.folders[folder] if suffix_of(n) in suffixes]
            names += relative(files, top)
    return found


def is_of_masks(folder: str) -> bool:
    """Tell whether a part of a folder's name says that masks are in it."""
    return "masks" in map(role_of, folder.split("/"))


def key_of(folder: str) -> str:
    """Return what a folder of images and that of its masks share: all but the words for them."""
    splits = frozenset().union(*WORDS_OF_SPLITS.values())
    parts = []
    for part in folder.split("/"):
        words = [w for w in words_of(part) if w in splits] if role_of(part) else [part.lower()]
        parts.append("_".join(words))
    return "/".join(filter(None, parts))


def top_of(folder: str, role: str) -> str:
    """Return the part of a folder's name up to its split and its word for images or masks."""
    parts = folder.split("/")
    telling = [i for i, part in enumerate(parts, 1) if role_of(part) == role or split_of(part)]
    return "/".join(parts[: max(telling, default=0)])


def pair_in_folders(tree: Tree) -> dict[str, Pairs]:
    """Find the folders in which images and masks lie together, such as x.jpg and x_mask.png."""
    found = {}
    for folder, files in tree.folders.items():
        names = [name for name in files if suffix_of(name) in IMAGES]
        stems = set(map(stem_of, names))
        ends = {stem + end for stem in stems for end in BESIDE}
        masks = [name for name in names if stem_of(name) in ends]
        if masks and belongs(folder):
            images = [name for name in names if name not in set(masks)]
            found[split_of_folder(folder) or ALL] = Pairs(folder, folder, images, masks)
    return found


# Description -------------------------------------------------------------------------------------


def read(tree: Tree, found: dict[str, Pairs], hints: Hints) -> Layout:
    """Describe the data set of images and masks.

    Raises:
        UserError: if masks are not called as their images, have values of no class, or the classes
            have no names; or if there is no split to validate with.
        DataError: if a mask cannot be read, or a list names what is not there.
    """
    notes: list[str] = []
    found = ordered(found)
    suffixes = suffixes_of(tree, found)
    names = {split: matched(pairs, suffixes, split, notes) for split, pairs in found.items()}
    taken = {join(pairs.images, name) for pairs in found.values() for name in pairs.names}
    taken |= {join(pairs.masks, name) for pairs in found.values() for name in pairs.mask_names}
    rest = [i for i in tree.images() if i not in taken and not is_of_masks(parent(i))]
    notes += listed(rest, "images in folders without masks")
    lists = {}
    if list(names) == [ALL]:
        image_of = {stem_of(name): name for name in names[ALL]}
        lists = read_lists(tree, LISTS, image_of, "mask", notes)
    parts = complete(tree, lists or names, hints, notes)
    if lists:
        note_overlap(parts, notes)
    pairs_of = {split: found[ALL if lists else part.source] for split, part in parts.items()}
    masks = dict.fromkeys(
        join(pairs_of[split].masks, suffixes.mask_of(name))
        for split, part in parts.items()
        for name in part.names
    )
    meaning = understand(tree, scan_masks(tree.root, list(masks)), hints, notes)
    return Layout(
        "segmentation",
        KIND,
        tree.root,
        splits={s: describe_split(tree, pairs_of[s], part, suffixes) for s, part in parts.items()},
        image_suffix=suffixes.image,
        mask_suffix=suffixes.mask,
        notes=notes,
        **asdict(meaning),
    )


def matched(pairs: Pairs, suffixes: Suffixes, split: str, notes: list[str]) -> list[str]:
    """Return the images of a split that have a mask, and note the files without their like."""
    masks = set(pairs.mask_names)
    mine = [name for name in pairs.names if name.endswith(suffixes.image)]
    names = [name for name in mine if suffixes.mask_of(name) in masks]
    notes.append(
        f"{split}: {count(len(names), 'images')} ({pairs.images or '.'}/*{suffixes.image}) with "
        f"masks ({pairs.masks or '.'}/*{suffixes.mask})"
    )
    others = set(pairs.names).difference(mine)
    lone = set(mine).difference(names)
    rest = [m for m in masks.difference(map(suffixes.mask_of, mine)) if m.endswith(suffixes.mask)]
    before = f"passed over for {split}: "
    notes += listed(pairs.others, "other folders of masks", before)
    notes += listed(sorted(others), f"images without the suffix {suffixes.image}", before)
    notes += listed(sorted(lone), "images without mask", before)
    notes += listed(sorted(rest), "masks without image", before)
    return names


def describe_split(tree: Tree, pairs: Pairs, part: Part, suffixes: Suffixes) -> Split:
    """Describe a split; its images are named where MMSegmentation would find others, too."""
    folder = tree.root / pairs.images
    all_there = sum(path.endswith(suffixes.image) for path in files_under(folder))
    names = None if all_there == len(part.names) else part.names
    return Split(folder, tree.root / pairs.masks, names=names)


# Names -------------------------------------------------------------------------------------------


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
    if not votes:
        pairs = next(iter(found.values()))
        image, mask = (few(names[:1]) for names in (pairs.names, pairs.mask_names))
        raise UserError(
            f"{tree.root}: no mask in {pairs.masks or '.'} (such as {mask}) is called as an image "
            f"in {pairs.images or '.'} (such as {image}); expected the same name, but for its end"
        )
    return Suffixes(*max(votes, key=lambda v: (votes[v], -preference(v[1]), -len(v[1]), v)))


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
    common = {mask: os.path.commonprefix([stem, mask]) for mask in near}  # noqa: RUF071  letters
    if stem not in common.values():  # they differ in more than a suffix
        common = {mask: start.rstrip("._-") for mask, start in common.items()}
    most = max(map(len, common.values()), default=0)
    least = len(name.rpartition("/")[0]) + 1
    return {
        (name[most:], mask[most:])
        for mask, start in common.items()
        if len(start) == most and most >= least and mask[most:].lower().endswith(suffix_of(mask))
    }
