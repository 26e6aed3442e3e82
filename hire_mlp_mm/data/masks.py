"""Check the masks of a segmentation: a file for each image, and labels that are classes.

A mask is an image whose pixels are labels. MMSegmentation reads them by Pillow, unless a step names
another backend: of a palette image the indices, of a black and white one 0 and 1.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO

import numpy as np
from PIL import Image

from ..disk import JPEG
from ..errors import DataError
from ..files import WholeImages
from .labels import VALUES, Labels, count_values, depth_fault, label_fault, shape_fault
from .listing import absent_files, after, evenly, files_under, is_image
from .report import Report, count, few, without
from .tree import TURNED, read_header

Pair = tuple[str, str]  # the files of an image and of its mask
SAMPLE = 200  # masks that a run looks into when it starts
LARGE_SAMPLE = 1000  # where a class has no pixel in the first sample
THREADS = 4  # Pillow lets others work while it decodes
JPEG_CURE = "; JPEG changes labels: write masks as PNG"
UNREAD = "cannot be read"
MISSHAPEN = "have another shape than their images"
DEEP = "have labels beyond 8 bits"
STRAY = "have labels of no class"


def passed_over(images: str, masks: str, image_suffix: str, mask_suffix: str) -> Counter[str]:
    """Count the files of two folders that are of no pair because of their names, by the reason."""
    in_images, in_masks = ([*files_under(os.path.join(one, ""))] for one in (images, masks))
    skipped: Counter[str] = Counter()
    own = {path for path in in_masks if path.endswith(mask_suffix)}
    stems = {
        path.removeprefix(os.path.join(images, "")).removesuffix(image_suffix)
        for path in in_images
        if path.endswith(image_suffix)
    }
    for path in own:
        stem = path.removeprefix(os.path.join(masks, "")).removesuffix(mask_suffix)
        if stem not in stems:
            skipped["masks without an image"] += 1
    for path in in_images:
        if is_image(path) and not path.endswith(image_suffix) and path not in own:
            suffix = os.path.splitext(path)[1]
            skipped[f"images {suffix} (img_suffix is {image_suffix})"] += 1
    return skipped


def decode_labels(content: bytes) -> np.ndarray:
    """Decode a mask as mmseg does where its step names no backend."""
    with Image.open(BytesIO(content)) as image:
        return np.asarray(image)


@dataclass(frozen=True)
class Look:
    """Hold what a look into one mask has found.

    Attributes:
        mask: the file.
        kind: of the fault, in words that go on after `masks`; empty where there is none.
        fault: a line that goes on after the mask's name.
        pixels: how many have each value, (256,); none where the file cannot be read.
        jpeg: whether the mask is a JPEG.
        turned: whether its image is read as EXIF turns it.
    """

    mask: str
    kind: str = ""
    fault: str = ""
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(VALUES, dtype=np.int64))
    jpeg: bool = False
    turned: bool = False


def look_into(
    pair: Pair, meaning: Labels, decode: Callable[[bytes], np.ndarray], turns: bool
) -> Look:
    """Look into a mask, and at the size of its image."""
    image, mask = pair
    try:
        content = WholeImages().get(mask)
        labels = np.asarray(decode(content)).squeeze()
    except DataError as error:
        return Look(mask, UNREAD, f": {error}")
    except Exception:  # decoders raise whatever they like
        return Look(mask, UNREAD, " cannot be decoded: truncated, damaged or of an unknown format")
    size, turned = None, False
    with suppress(DataError):  # of images that are missing, or that Pillow does not read
        width, height, orientation = read_header(image)
        size = (width, height) if turns and orientation in TURNED else (height, width)
        turned = turns and orientation in range(2, 9)
    found = partial(Look, mask, jpeg=content.startswith(JPEG), turned=turned)
    if fault := size and shape_fault(labels.shape, size):
        return found(MISSHAPEN, f" {fault}{' (turned as its EXIF says)' if turned else ''}")
    if fault := depth_fault(labels):
        return found(DEEP, f" {fault}")
    pixels = count_values(labels.astype(np.uint8))
    fault = label_fault(pixels, meaning)
    return found(STRAY if fault else "", f" {fault}", pixels)


@dataclass
class Tally:
    """Add up looks into masks.

    Attributes:
        meaning: of the values.
        of: how many masks there are.
        looks: how many were looked into.
        pixels: how many have each value, (256,).
        faults: the first look and the number, by the kind.
        ignored, jpegs, turned: masks whose pixels are all ignored, masks that are JPEGs, masks
            whose image EXIF turns.
    """

    meaning: Labels
    of: int
    looks: int = 0
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(VALUES, dtype=np.int64))
    faults: dict[str, tuple[Look, int]] = field(default_factory=dict)
    ignored: int = 0
    jpegs: int = 0
    turned: int = 0

    def add(self, look: Look) -> None:
        """Add a look."""
        self.looks += 1
        self.pixels += look.pixels
        self.jpegs += look.jpeg
        self.turned += look.turned
        there = look.pixels > 0
        self.ignored += bool(there.any() and self.meaning.ignored[there].all())
        if look.kind:
            first, number = self.faults.get(look.kind, (look, 0))
            self.faults[look.kind] = first, number + 1

    def masks(self) -> str:
        """Say how many masks were looked into."""
        return count(self.looks, "masks" if self.looks == self.of else f"of {self.of} masks")

    def values(self) -> set[int]:
        """Return the values that occur."""
        return {int(value) for value in np.flatnonzero(self.pixels)}

    def per_class(self) -> dict[str, int]:
        """Count the pixels of each class."""
        return self.meaning.count(self.pixels)

    def absent(self) -> list[str]:
        """Return the classes without a pixel."""
        return [name for name, pixels in self.per_class().items() if not pixels]


def check_masks(
    pairs: Sequence[Pair],
    meaning: Labels,
    source: str,
    sample: bool = False,
    decode: Callable[[bytes], np.ndarray] = decode_labels,
    turns: bool = True,
) -> Report:
    """Check that images and masks are there, and what the labels are.

    Args:
        pairs: the files of each image and of its mask; local ones.
        meaning: of the values of the masks.
        source: the folder of the masks.
        sample: look into `SAMPLE` masks, evenly spread, or into `LARGE_SAMPLE` where a class has
            no pixel in them; else into all. Whether files are there is looked up for all.
        decode: gives the values of a file's content, (height, width).
        turns: whether images are read as their EXIF turns them.

    Returns:
        A report with pixels per class of the masks that were looked into. Its `empty` are those
        of which every pixel is ignored.
    """
    report = Report(source, images=len(pairs))
    absent = absent_files(path for pair in pairs for path in pair)
    report.faults += missing_files(pairs, source, absent)
    there = [pair for pair in pairs if pair[1] not in absent]
    tally, done = Tally(meaning, len(there)), set[int]()
    look = partial(look_into, meaning=meaning, decode=decode, turns=turns)
    with ThreadPoolExecutor(THREADS) as pool:
        for most in (SAMPLE, LARGE_SAMPLE) if sample else (len(there),):
            new = [i for i in evenly(len(there), most) if i not in done]
            for one in pool.map(look, [there[i] for i in new]):
                tally.add(one)
            done.update(new)
            if tally.faults or not tally.absent():
                break
    report.empty = tally.ignored
    part = "" if tally.looks == tally.of else f" of {tally.looks} looked into"
    report.odd[f"masks{part} whose pixels are all ignored"] = tally.ignored
    report.odd["images named again in the list"] = len(pairs) - len({*pairs})
    report.per_class = tally.per_class()
    report.faults += faults_of_masks(tally, source)
    if tally.looks and not report.faults:
        report.faults += faults_of_all(tally)
        report.notes += notes_of(tally)
    return report


def missing_files(pairs: Sequence[Pair], source: str, absent: set[str]) -> Iterator[str]:
    """Yield which images and masks are not there, and how many.

    Args:
        pairs: the files of each image and of its mask; local ones.
        source: with what each line begins, such as the folder of the masks.
        absent: the files that are not there.
    """
    for what, i in (("images", 0), ("masks", 1)):
        lost = [pair for pair in pairs if pair[i] in absent]
        if not lost:
            continue
        image, path = lost[0][0], lost[0][i]
        number = f" ({len(lost)} of {len(pairs)} {what} are missing)" if lost[1:] else ""
        hint = f", the mask of {image}{other_names(image, path)}" if i else ""
        yield f"{after(source, path)} not found{hint}{number}"


def other_names(image: str, mask: str) -> str:
    """Name a file that may be the mask of an image, where there is none of the name expected."""
    stem, folder = os.path.splitext(os.path.basename(image))[0], os.path.dirname(mask)
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    near = [name for name in names if name.startswith(stem) and name != os.path.basename(image)]
    return f"; there is {near[0]} (seg_map_suffix)" if near else ""


def faults_of_masks(tally: Tally, source: str) -> Iterator[str]:
    """Yield what is wrong with single masks: the first of each kind, and how many."""
    for kind, (look, number) in tally.faults.items():
        more = cure = ""
        if kind == STRAY:
            strays = sorted(value for value in tally.values() if tally.meaning.strays[value])
            more, cure = f": {few(strays)}", cure_of_labels(tally, look.jpeg)
        if number > 1:
            cure = f" ({number} of {tally.looks} masks {kind}{more}){cure}"
        yield f"{after(source, look.mask)}{look.fault}{cure}"


def cure_of_labels(tally: Tally, jpeg: bool) -> str:
    """Say what may be meant by values that are of no class."""
    meaning, values = tally.meaning, tally.values()
    more = len(meaning.classes or ())  # the first that is too large
    if jpeg:
        return JPEG_CURE
    if values <= {0, 255}:
        return "; write 1 in place of 255"
    if meaning.reduce_zero_label or max(values - {255, meaning.ignore_index}) > more:
        return ""
    if 0 not in values:
        return "; set reduce_zero_label=True, which takes 1 for the first class"
    return (
        f"; name one class more, or set ignore_index={more} (if {more} is no class, also in heads "
        "and metrics) or reduce_zero_label=True (if 0 is no class, and 1 the first)"
    )


def faults_of_all(tally: Tally) -> Iterator[str]:
    """Yield why there is nothing to learn from masks of which each is right."""
    meaning, masks = tally.meaning, tally.masks()
    if meaning.classes is None:
        return
    if len(meaning.classes) == 1:
        yield (
            f": {meaning.classes[0]} is the one class, and there is nothing to tell it from; name "
            "the background as a class, too"
        )
    elif tally.values() == {0, 255} and meaning.ignored[255]:
        ignored = "0 (reduce_zero_label) and 255 are" if meaning.reduce_zero_label else "255 is"
        yield (
            f": the values of {masks} are 0 and 255, and {ignored} ignored, so that no pixel is of "
            f"{few(tally.absent())}; write 1 in place of 255"
        )
    elif tally.ignored == tally.looks:
        by = " (reduce_zero_label ignores 0)" if meaning.reduce_zero_label else ""
        yield f": every pixel of {masks} is ignored{by}: there is nothing to learn"


def notes_of(tally: Tally) -> Iterator[str]:
    """Yield what a person should know of masks that can be learnt."""
    for line in without(tally.per_class(), f"pixel in {tally.masks()}"):
        yield f"{line}{shifted(tally)}"
    if tally.jpegs:
        yield f": {tally.jpegs} of {tally.looks} masks are JPEGs, which change labels; write PNG"
    if tally.turned:
        yield (
            f": {count(tally.turned, 'images')} of {tally.looks}, read as EXIF turns them; their "
            "masks have to be turned already"
        )


def shifted(tally: Tally) -> str:
    """Say that reduce_zero_label may be wrong, where the last class never occurs and 0 does."""
    classes = tally.meaning.classes or ()
    reduced = tally.meaning.reduce_zero_label and tally.pixels[0]
    if not (reduced and tally.absent()[-1:] == [*classes][-1:]):
        return ""
    return (
        f"; reduce_zero_label takes 1 for {classes[0]} and ignores 0: set it to False, if 0 is "
        f"{classes[0]}"
    )
