"""Scan the masks of a segmentation for their values or colours, and write colours as labels."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from ..errors import DataError, UserError, describe
from .labels import count_values
from .layout import Layout, Split
from .listing import files_under
from .masks import JPEG_CURE, THREADS
from .palette import Colour
from .tree import suffix_of

INDICES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")  # Pillow's modes
COLOURS = ("RGB", "RGBA")
MOST_VALUES = 1000  # more colours than any data set has classes: these are photographs
IGNORED = 255
T = TypeVar("T")


@dataclass
class Scan:
    """Hold the values of masks.

    Attributes:
        coloured: whether they are colours, each as `code_of` gives it.
        pixels: how many there are of each value.
        first: a mask in which each value is, relative to the data set's folder.
        palette: the colours of the values, where the masks are palette images.
    """

    coloured: bool = False
    pixels: Counter[int] = field(default_factory=Counter)
    first: dict[int, str] = field(default_factory=dict)
    palette: list[Colour] | None = None

    def share(self, value: int) -> str:
        """Say how often a value is, and where it is for the first time."""
        share = 100 * self.pixels[value] / self.pixels.total()
        return f"in {share:.2g} % of the pixels (first in {self.first[value]})"

    def jpegs(self) -> str:
        """Say what may be wrong with values that are of JPEGs; nothing of other files."""
        are = any(suffix_of(name) in (".jpg", ".jpeg", ".jfif") for name in self.first.values())
        return JPEG_CURE if are else ""

    def renamed(self, values: Mapping[int, int]) -> Scan:
        """Return the scan with a new value for each."""
        pixels = Counter({new: self.pixels[old] for old, new in values.items()})
        first = {new: self.first[old] for old, new in values.items()}
        return Scan(not self.coloured, pixels, first)

    def as_colours(self, known: set[int]) -> Scan:
        """Return labels as grey colours, where these are all known; else the scan as it is."""
        greys = {value: code_of((value,) * 3) for value in self.pixels}
        are_colours = self.palette is None and len(greys) > 1 and known.issuperset(greys.values())
        return self.renamed(greys) if are_colours else self


def code_of(colour: Colour) -> int:
    """Return a colour as one number."""
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def colour_of(code: int) -> Colour:
    """Return the colour of a number that `code_of` gave."""
    return code >> 16, code >> 8 & 255, code & 255


# Reading -----------------------------------------------------------------------------------------


def scan_masks(root: Path, names: list[str]) -> Scan:
    """Read all of some masks.

    Args:
        root: the folder to which the names are relative.
        names: of the masks.

    Raises:
        DataError: if a mask cannot be read or is of an unusual mode.
        UserError: if some masks are colours and others are not, or they are photographs.
    """
    scan = Scan()
    modes: dict[bool, str] = {}
    for name, (coloured, pixels, palette) in zip(
        names, in_threads(partial(values_of, root), names), strict=True
    ):
        modes.setdefault(coloured, name)
        if len(modes) > 1:
            raise UserError(
                f"{root / modes[True]} has colours, and {modes[False]} has labels; expected one "
                "kind of masks"
            )
        scan.coloured = coloured
        scan.palette = scan.palette or palette
        scan.pixels += pixels
        scan.first = dict.fromkeys(pixels, name) | scan.first
        if len(scan.pixels) > MOST_VALUES:
            raise UserError(
                f"{root / name} has more than {MOST_VALUES} colours; expected a mask, with a "
                "colour for each class (saved as PNG: JPEG changes colours)"
            )
    return scan


def in_threads(function: Callable[[str], T], names: Iterable[str]) -> list[T]:
    """Call a function with each name, a few at a time, and return its results in their order."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, names))


def values_of(root: Path, name: str) -> tuple[bool, Counter[int], list[Colour] | None]:
    """Return whether a mask has colours, the pixels of each value, and its palette."""
    coloured, array, palette = read_mask(root / name)
    if array.dtype == np.uint8:  # faster than by sorting
        pixels = count_values(array)
        values = np.flatnonzero(pixels)
        pixels = pixels[values]
    else:
        values, pixels = np.unique(array, return_counts=True)
    return coloured, Counter(dict(zip(values.tolist(), pixels.tolist(), strict=True))), palette


def read_mask(file: Path | BytesIO) -> tuple[bool, np.ndarray, list[Colour] | None]:
    """Read a mask.

    Returns:
        whether it has colours; its labels, or its colours as `code_of` gives them, (H, W); its
        palette.

    Raises:
        DataError: if it cannot be read, or has another mode than masks have.
    """
    name = file if isinstance(file, Path) else "the mask"
    try:
        with Image.open(file) as image:
            mode, array = image.mode, np.asarray(image)
            numbers = (image.getpalette() or []) if mode == "P" else []
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} is no mask that can be read: {describe(error)}") from error
    if mode not in INDICES + COLOURS:
        raise DataError(f"{name} has the mode {mode}; expected labels, a palette or RGB")
    if mode in COLOURS:
        wide = array.astype(np.int32)
        return True, wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2], None
    colours = list(zip(numbers[0::3], numbers[1::3], numbers[2::3], strict=False))
    return False, array.astype(np.uint8) if mode == "1" else array, colours or None


# Writing -----------------------------------------------------------------------------------------


def decode_by_table(table: Mapping[Colour, int], content: bytes) -> np.ndarray:
    """Decode a mask as the labels (H, W) that will be written of it; see `write_masks`.

    Raises:
        DataError: if it has a colour that the table does not have.
    """
    return translate(BytesIO(content), table)


def translate(file: Path | BytesIO, table: Mapping[Colour, int]) -> np.ndarray:
    """Read a mask as the labels (H, W) that a table has for its colours, or its values."""
    coloured, array, _ = read_mask(file)
    label_of = {code_of(colour): label for colour, label in table.items()}
    values, places = np.unique(array, return_inverse=True)
    codes = [int(value) if coloured else code_of((int(value),) * 3) for value in values]
    if unknown := [code for code in codes if code not in label_of]:
        name = file if isinstance(file, Path) else "the mask"
        raise DataError(f"{name} has the colour {colour_of(unknown[0])}, which is of no class")
    return np.array([label_of[code] for code in codes], np.uint8)[places.reshape(array.shape)]


def write_masks(layout: Layout, out: Path) -> Layout:
    """Write masks as labels that `layout.mask_table` translates, and leave the user's as they are.

    Args:
        layout: with a table; its masks have colours, or values v that stand for (v, v, v).
        out: the folder to write to, `SPLIT/NAME.png`; nothing in it is overwritten.

    Returns:
        The layout with the masks that were written.

    Raises:
        UserError: if a file is there already.
        DataError: if a mask has a colour that the table does not have.
    """
    if layout.mask_table is None:
        return layout
    suffix = suffix_written(layout.mask_suffix)
    splits = {}
    for name, split in layout.splits.items():
        write = partial(write_mask, layout, Path(str(split.annotations)), out / name)
        in_threads(write, stems_of_masks(layout, split))
        splits[name] = dataclasses.replace(split, annotations=out / name)
    return dataclasses.replace(layout, splits=splits, mask_suffix=suffix, mask_table=None)


def suffix_written(mask_suffix: str) -> str:
    """Return the suffix of masks that are written, for that of the masks which they are made of."""
    return os.path.splitext(f"x{mask_suffix}")[0][1:] + ".png"


def stems_of_masks(layout: Layout, split: Split) -> list[str]:
    """Return the names of a split's masks without their suffix: those of its images."""
    names = split.names
    if names is None:
        names = sorted(os.path.relpath(path, split.images) for path in files_under(split.images))
    suffix = layout.image_suffix
    return [name.removesuffix(suffix) for name in names if name.endswith(suffix)]


def write_mask(layout: Layout, masks: Path, out: Path, stem: str) -> None:
    """Write a mask as labels, by the table and the suffixes of a layout."""
    labels = translate(masks / f"{stem}{layout.mask_suffix}", layout.mask_table or {})
    new = out / f"{stem}{suffix_written(layout.mask_suffix)}"
    new.parent.mkdir(parents=True, exist_ok=True)
    try:
        with new.open("xb") as file:
            Image.fromarray(labels).save(file, "PNG")
    except FileExistsError as error:
        raise UserError(f"{new} exists already; name another folder") from error
