"""List what lies in a folder, once, and read from names what a folder or a file is for."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from PIL import Image

from ..errors import DataError, describe

IMAGES = frozenset(
    (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
)
LEFT_BY_PROGRAMS = frozenset(
    ("__MACOSX", "__pycache__", ".ipynb_checkpoints", "@eaDir", "Thumbs.db", "desktop.ini")
)
ORIENTATION = 0x0112  # the EXIF tag
TURNED = (5, 6, 7, 8)  # its values where height and width change places
MIRRORED = (2, 3, 4)  # where an image is mirrored or turned by half

WORDS_OF_SPLITS = {
    "train": frozenset(("train", "training")),
    "val": frozenset(("val", "valid", "validation")),
    "test": frozenset(("test", "testing")),
}
# Words in the names of folders, in lower case.
IMAGE_WORDS = frozenset(
    ("image", "images", "img", "imgs", "jpegimages", "leftimg8bit", "photos", "rgb", "input",
     "inputs")
)  # fmt: skip
MASK_WORDS = frozenset(
    ("mask", "masks", "label", "labels", "annotation", "annotations", "ann", "anns", "annot", "gt",
     "gtfine", "truth", "groundtruth", "segmentation", "segmentations", "segmentationclass", "seg",
     "segs", "target", "targets", "labelids")
)  # fmt: skip
OTHER_WORDS = frozenset(("imagesets", "xml", "xmls", "json", "jsons", "coco", "voc", "yolo"))


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

    def tops(self) -> list[str]:
        """Return the names of the folders right under `root`."""
        return [folder for folder in self.folders if folder and "/" not in folder]

    def files(self, suffixes: Iterable[str], inside: str = "") -> list[str]:
        """Return the files, relative to `root`, that have one of some suffixes (in lower case).

        Args:
            suffixes: with their dots.
            inside: the folder in which the files are, at whatever depth.
        """
        start = f"{inside}/" if inside else ""
        return [
            join(folder, name)
            for folder, names in self.folders.items()
            for name in names
            if suffix_of(name) in suffixes and f"{folder}/".startswith(start)
        ]

    def images(self, inside: str = "") -> list[str]:
        """Return the images, relative to `root`, in a folder at whatever depth."""
        return self.files(IMAGES, inside)

    def notes(self) -> list[str]:
        """Say what was passed over."""
        parts = [f"{number} {kind}" for kind, number in sorted(self.passed.items())]
        return [f"passed over: {', '.join(parts)}"] if parts else []


def left_behind(name: str) -> str | None:
    """Name the kind of a file or folder that is no part of a data set, or return None."""
    if name in LEFT_BY_PROGRAMS:
        return name
    if name.startswith("."):
        return "hidden"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "whose names are not UTF-8"
    return None


# Names -------------------------------------------------------------------------------------------


def join(folder: str, name: str) -> str:
    """Join two relative names with `/`; either may be empty."""
    return "/".join(filter(None, (folder, name)))


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
    return "" if "" in folders else os.path.commonpath(folders or [""])


def relative(names: Iterable[str], folder: str) -> list[str]:
    """Return names relative to a folder in which they are."""
    return [name.removeprefix(f"{folder}/") for name in names]


# What names mean ---------------------------------------------------------------------------------


def split_of(text: str) -> str | None:
    """Return the split that a word of a file's or folder's name means: train, val or test."""
    words = set(re.split(r"[^a-z]+", text.lower()))
    found = [split for split, known in WORDS_OF_SPLITS.items() if words & known]
    return found[0] if len(found) == 1 else None


def split_of_folder(folder: str) -> str | None:
    """Return the split that the first telling part of a folder's name means."""
    return next(filter(None, map(split_of, PurePosixPath(folder).parts)), None)


def words_of(part: str) -> list[str]:
    """Return the words in a folder's name, such as `train` and `annot` in `trainannot`."""
    spaced = re.sub(r"(train|val|test)annot$", r"\1_annot", part.lower())
    return [word for word in re.split(r"[_\-. ]+", spaced) if word not in ("", "dir", "ground")]


def role_of(part: str) -> str | None:
    """Return what a folder is for by its name, `images` or `masks`; None if it says neither."""
    words = set(words_of(part)).difference(*WORDS_OF_SPLITS.values())
    if not words or not words <= IMAGE_WORDS | MASK_WORDS:
        return None
    return "masks" if words & MASK_WORDS else "images"


def belongs(folder: str) -> bool:
    """Tell whether a folder is part of the data set itself, not of one of several in a folder."""
    first = folder.partition("/")[0]
    known = role_of(first) or split_of(" ".join(words_of(first))) or first.lower() in OTHER_WORDS
    return bool(not first or known)


# Files -------------------------------------------------------------------------------------------


def image_size(path: str | Path) -> tuple[int, int]:
    """Return the width and height of an image in pixels, as it is shown: its header is enough.

    Raises:
        DataError: if the file is no image that can be read.
    """
    width, height, orientation = read_header(path)
    return (height, width) if orientation in TURNED else (width, height)


def read_header(path: str | Path) -> tuple[int, int, int]:
    """Read the width and height of an image as it is stored, and its EXIF orientation (1 to 8).

    Raises:
        DataError: if the file is no image that can be read.
    """
    try:
        with Image.open(path) as image:
            return *image.size, image.getexif().get(ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is no image that can be read: {describe(error)}") from error


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
