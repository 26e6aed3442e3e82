"""List what lies in a folder, once, and read from names what a folder or a file is for."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from PIL import Image

from ..errors import DataError, describe, short

IMAGES = frozenset(
    (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
)
LEFT_BY_PROGRAMS = frozenset(("__MACOSX", "__pycache__", "@eaDir", "Thumbs.db", "desktop.ini"))
ORIENTATION = 0x0112  # the EXIF tag
TURNED = (5, 6, 7, 8)  # its values where height and width change places

WORDS_OF_SPLITS = {
    "train": frozenset(("train", "training")),
    "val": frozenset(("val", "valid", "validation")),
    "test": frozenset(("test", "testing")),
}
# What folders of a data set are called, in lower case.
IMAGE_WORDS = frozenset(
    ("image", "images", "img", "imgs", "img_dir", "images_dir", "jpegimages", "leftimg8bit",
     "photos", "rgb", "input", "inputs")
)  # fmt: skip
MASK_WORDS = frozenset(
    ("mask", "masks", "label", "labels", "annotation", "annotations", "ann", "anns", "ann_dir",
     "gt", "gtfine", "ground_truth", "groundtruth", "segmentation", "segmentations",
     "segmentationclass", "seg", "segs", "target", "targets", "annot", "mask_dir", "labelids")
)  # fmt: skip
OTHER_WORDS = frozenset(("imagesets", "xml", "xmls", "json", "jsons", "coco", "voc", "yolo"))
ENDINGS = ("_annot", "annot", "_masks", "_mask", "_labels", "_label", "_gt")  # after a split


class Tree:
    """Hold the names of all files and folders under a folder.

    What systems and programs leave behind is passed over: hidden files and folders, `__MACOSX`,
    `Thumbs.db` and the like, and names that are not UTF-8.

    Attributes:
        root: the folder.
        folders: of each folder under it, by its name relative to `root` ("" is `root` itself), the
            names of its files, sorted.
        passed: how many files and folders were passed over, by name or kind.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folders: dict[str, list[str]] = {}
        self.passed: Counter[str] = Counter()
        self.walk("", frozenset())

    def walk(self, folder: str, above: frozenset[str]) -> None:
        """List a folder and those in it; a link to a folder above is not followed."""
        real = os.path.realpath(self.root / folder)
        if real in above:
            return
        try:
            entries = sorted(os.scandir(self.root / folder), key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(f"{self.root / folder} cannot be listed: {describe(error)}") from error
        files = self.folders[folder] = []
        for entry in entries:
            if kind := left_behind(entry.name):
                self.passed[kind] += 1
            elif entry.is_dir():
                self.walk(join(folder, entry.name), above | {real})
            else:
                files.append(entry.name)

    def files(self, *suffixes: str) -> list[str]:
        """Return the files, relative to `root`, that have one of these suffixes (in lower case)."""
        return [
            join(folder, name)
            for folder, names in self.folders.items()
            for name in names
            if suffix_of(name) in suffixes
        ]

    def images(self) -> list[str]:
        """Return all images, relative to `root`."""
        return self.files(*IMAGES)

    def notes(self) -> list[str]:
        """Say what was passed over."""
        parts = [f"{count} {kind}" for kind, count in sorted(self.passed.items())]
        return [f"passed over: {', '.join(parts)}"] if parts else []


def left_behind(name: str) -> str | None:
    """Name the kind of a file or folder that is no part of a data set, or return None."""
    if name in LEFT_BY_PROGRAMS:
        return name
    if name == ".ipynb_checkpoints":
        return name
    if name.startswith("."):
        return "hidden files or folders"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "files or folders whose names are not UTF-8"
    return None


def join(folder: str, name: str) -> str:
    """Join two relative names with `/`; the first may be empty."""
    return f"{folder}/{name}" if folder else name


def parent(name: str) -> str:
    """Return the folder of a relative name, "" where it has none."""
    return name.rpartition("/")[0]


def last(name: str) -> str:
    """Return the last part of a relative name."""
    return name.rpartition("/")[2]


def suffix_of(name: str) -> str:
    """Return the suffix of a name in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()


def stem_of(name: str) -> str:
    """Return the last part of a name without its suffix, letters with accents composed.

    Some systems write an accent as a character of its own; the same name would differ.
    """
    return unicodedata.normalize("NFC", os.path.splitext(last(name))[0])


def common_folder(names: Iterable[str]) -> str:
    """Return the deepest folder that holds all of some relative names."""
    folders = {parent(name) for name in names}
    if not folders or "" in folders:
        return ""
    return os.path.commonpath(folders)


def relative(names: Iterable[str], folder: str) -> list[str]:
    """Return names relative to a folder in which they are."""
    return [name[len(folder) + 1 :] if folder else name for name in names]


def split_of(text: str) -> str | None:
    """Return the split that a word of a file's or folder's name means: train, val or test."""
    words = set(re.split(r"[^a-z]+", text.lower()))
    found = [split for split, known in WORDS_OF_SPLITS.items() if words & known]
    return found[0] if len(found) == 1 else None


def split_of_folder(folder: str) -> str | None:
    """Return the split that the first telling part of a folder's name means."""
    return next(filter(None, map(split_of, PurePosixPath(folder).parts)), None)


def plain_part(part: str) -> str:
    """Return a folder's name without an ending that says masks: `train` for `trainannot`."""
    for ending in ENDINGS:
        stem = part[: -len(ending)]
        if part.lower().endswith(ending) and split_of(stem):
            return stem
    return part


def belongs(folder: str) -> bool:
    """Say whether a folder is part of the data set itself, not of one of several in a folder."""
    first = folder.partition("/")[0]
    known = IMAGE_WORDS | MASK_WORDS | OTHER_WORDS
    return not first or first.lower() in known or split_of(plain_part(first)) is not None


def image_size(path: Path) -> tuple[int, int]:
    """Return the width and height of an image in pixels, as it is shown: its header is enough.

    Raises:
        DataError: if the file is no image that can be read.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(ORIENTATION) in TURNED
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is no image that can be read: {describe(error)}") from error
    return (height, width) if turned else (width, height)


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not empty, without space around them.

    Raises:
        DataError: if the file is missing or no text.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no UTF-8 text that can be read: {describe(error)}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def count(number: int, what: str) -> str:
    """Say how many there are of something whose plural ends in s."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def some(names: Iterable[object], most: int = 5) -> str:
    """Join the first few names for a line."""
    texts = [short(str(name)) for name in names]
    return ", ".join(texts[:most]) + (", ..." if len(texts) > most else "")
