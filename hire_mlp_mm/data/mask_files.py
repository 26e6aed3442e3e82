"""Scan the masks of a segmentation for their values or colours, and write colours as labels."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from ..errors import DataError, UserError, describe
from .class_names import Colour
from .labels import count_values
from .layout import Layout, Split

INDICES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")  # Pillow's modes
COLOURS = ("RGB", "RGBA")
THREADS = 4  # Pillow lets others work while it decodes
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


def code_of(colour: Colour) -> int:
    """Return a colour as one number."""
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def colour_of(code: int) -> Colour:
    """Return the colour of a number that `code_of` gave."""
    return code >> 16, code >> 8 & 255, code & 255


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
    for name, (coloured, values, palette) in zip(
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
        for value, pixels in values.items():
            scan.pixels[value] += pixels
            scan.first.setdefault(value, name)
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
    mode, array, palette = read_mask(root / name)
    if mode in COLOURS:
        values, pixels = np.unique(codes(array), return_counts=True)
    elif array.dtype == np.uint8 or array.dtype == bool:
        pixels = count_values(array.astype(np.uint8))
        values = np.flatnonzero(pixels)
        pixels = pixels[values]
    else:
        values, pixels = np.unique(array, return_counts=True)
    counts = Counter(dict(zip(values.tolist(), pixels.tolist(), strict=True)))
    return mode in COLOURS, counts, palette


def read_mask(path: Path) -> tuple[str, np.ndarray, list[Colour] | None]:
    """Read a mask: Pillow's mode, its pixels, (H, W) or (H, W, 3 or 4), and its palette."""
    try:
        with Image.open(path) as image:
            mode, array = image.mode, np.asarray(image)
            numbers = (image.getpalette() or []) if mode == "P" else []
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is no mask that can be read: {describe(error)}") from error
    if mode not in INDICES + COLOURS:
        raise DataError(f"{path} has the mode {mode}; expected labels, a palette or RGB")
    colours = list(zip(numbers[0::3], numbers[1::3], numbers[2::3], strict=False))
    return mode, array, colours or None


def codes(colours: np.ndarray) -> np.ndarray:
    """Return colours (H, W, 3 or 4) as one number a pixel (H, W), as `code_of` gives it."""
    wide = colours[..., :3].astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


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
    table = {code_of(colour): label for colour, label in layout.mask_table.items()}
    suffix = suffix_written(layout.mask_suffix)
    splits = {}
    for name, split in layout.splits.items():
        assert split.annotations is not None, "a segmentation has masks"
        ends = layout.mask_suffix, suffix
        write = partial(write_mask, split.annotations, out / name, ends, table)
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
        paths = split.images.rglob(f"*{layout.image_suffix}")
        names = sorted(path.relative_to(split.images).as_posix() for path in paths)
    return [name.removesuffix(layout.image_suffix) for name in names]


def write_mask(
    masks: Path, out: Path, ends: tuple[str, str], table: dict[int, int], stem: str
) -> None:
    """Write a mask as labels; `ends` are the ends of its name and of the new one's."""
    path, new = masks / f"{stem}{ends[0]}", out / f"{stem}{ends[1]}"
    mode, array, _ = read_mask(path)
    values, places = np.unique(codes(array) if mode in COLOURS else array, return_inverse=True)
    found = [int(v) if mode in COLOURS else code_of((int(v),) * 3) for v in values]
    if unknown := [code for code in found if code not in table]:
        raise DataError(f"{path} has the colour {colour_of(unknown[0])}, which is of no class")
    labels = np.array([table[code] for code in found], dtype=np.uint8)
    new.parent.mkdir(parents=True, exist_ok=True)
    try:
        with new.open("xb") as file:
            Image.fromarray(labels[places.reshape(array.shape[:2])]).save(file, "PNG")
    except FileExistsError as error:
        raise UserError(f"{new} exists already; name another folder") from error
