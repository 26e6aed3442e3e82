"""Say what the values of a mask mean, and which of them are of no class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

VALUES = 256  # of a pixel: mmseg reads 8 bits


@dataclass(frozen=True)
class Labels:
    """Say what the values of masks mean, as a data set of MMSegmentation has it.

    Attributes:
        classes: the names, in the order of the labels; None where nobody has named them.
        ignore_index: the label of pixels that are not learnt.
        reduce_zero_label: whether 0 is ignored, and 1 is the first class.
        label_map: labels that become others, after that.
    """

    classes: Sequence[str] | None
    ignore_index: int = 255
    reduce_zero_label: bool = False
    label_map: Mapping[int, int] | None = None

    @cached_property
    def of_value(self) -> np.ndarray:
        """Give the label of each value, (256,)."""
        labels = np.arange(VALUES)
        if self.reduce_zero_label:
            labels = np.where((labels == 0) | (labels == 255), 255, labels - 1)
        before = labels.copy()
        for old, new in (self.label_map or {}).items():
            labels[before == old] = new
        return labels

    @cached_property
    def ignored(self) -> np.ndarray:
        """Tell which values are not learnt, (256,)."""
        return self.of_value == self.ignore_index

    @cached_property
    def strays(self) -> np.ndarray:
        """Tell which values are neither ignored nor a class, (256,)."""
        if self.classes is None:
            return np.zeros(VALUES, dtype=bool)
        return (self.of_value >= len(self.classes)) & ~self.ignored

    def describe(self) -> str:
        """Say which values are expected."""
        first = int(self.reduce_zero_label)
        last = len(self.classes or ()) - 1 + first
        others = "0 and 255" if first else self.ignore_index
        return f"expected {first} to {last}, or {others} for pixels to ignore"

    def count(self, pixels: np.ndarray) -> dict[str, int]:
        """Count the pixels of each class.

        Args:
            pixels: how many have each value, (256,).
        """
        counts = np.bincount(self.of_value, weights=pixels, minlength=VALUES)
        return {name: int(counts[i]) for i, name in enumerate(self.classes or ())}


def count_values(labels: np.ndarray) -> np.ndarray:
    """Count the pixels of a mask that have each value of 8 bits, (256,)."""
    return np.bincount(labels.reshape(-1), minlength=VALUES)


def shape_fault(shape: tuple[int, ...], size: tuple[int, int]) -> str | None:
    """Say what is wrong with the shape of a mask, of an image of `size` (height, width)."""
    if shape == size:
        return None
    line = f"is read with the shape {shape}; expected {size} as the image, with one class per pixel"
    colours = "; `hire-mlp data` makes labels of colours, if a table names them"
    return line + (colours if len(shape) == 3 else "")


def label_fault(pixels: np.ndarray, meaning: Labels) -> str | None:
    """Say which value of a mask is of no class; `pixels` have each value, (256,)."""
    strays = np.flatnonzero((pixels > 0) & meaning.strays)
    return stray_line(strays[0], pixels[strays[0]], meaning) if strays.size else None


def loaded_fault(labels: np.ndarray, meaning: Labels) -> str | None:
    """Say which label of a mask that is loaded is of no class, faster than by counting all."""
    if meaning.classes is None:
        return None
    strays = labels[(labels >= len(meaning.classes)) & (labels != meaning.ignore_index)]
    return stray_line(strays[0], (strays == strays[0]).sum(), meaning) if strays.size else None


def stray_line(label: int, pixels: int, meaning: Labels) -> str:
    """Say that some pixels of a mask are of no class."""
    return f"has the label {label} in {pixels} pixels; {meaning.describe()}"


def depth_fault(labels: np.ndarray) -> str | None:
    """Say that a label does not fit into the 8 bits that mmseg reads."""
    largest = labels.max(initial=0)
    return f"has the label {largest}; mmseg reads 8 bits of it" if largest >= VALUES else None
