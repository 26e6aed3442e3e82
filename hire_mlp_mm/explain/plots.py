"""Plot receptive fields by matplotlib."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from .fields import Field

COLOURS = "magma"
DECADES = 6  # of the scale: below a millionth of the strongest pixel all is black
SIDE = 2.1  # of a plot, in inches


def plot_fields(
    rows: Mapping[str, Sequence[Field]],
    path: str | os.PathLike[str],
    titles: Sequence[str] | None = None,
    crops: Sequence[int | None] | None = None,
) -> None:
    """Plot fields as pictures, a row for each network, and write a PNG file.

    A dashed square holds half of a field.

    Args:
        rows: the fields of each name.
        path: of the file.
        titles: of the columns; None for a column for each stride.
        crops: how many pixels of the middle each column shows; None for all.
    """
    placed = by_stride(rows) if titles is None else rows
    columns = max(map(len, placed.values()))
    crops = crops or [None] * columns
    size = (SIDE * columns + 1.5, (SIDE + 0.3) * len(rows) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    axes: Any = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, fields) in zip(axes, placed.items(), strict=True):
        for axis in line:
            axis.set_axis_off()
        for axis, field, crop in zip(line, fields, crops, strict=False):
            if field is None:
                continue
            axis.set_axis_on()
            picture = plot_field(axis, field, crop)
            if titles is None:
                axis.set_title(f"stride {field.stride}", fontsize=9)
        first = next(axis for axis, field in zip(line, fields, strict=False) if field)
        first.set_ylabel(name, fontsize=9)
    for axis, title, crop in zip(axes[0], titles or (), crops, strict=False):
        axis.set_title(f"{title}\n{crop} pixels across" if crop else title, fontsize=9)
    bar = figure.colorbar(picture, ax=axes, shrink=min(1.0, 1.6 / len(rows)), pad=0.01)
    bar.set_label("how strongly a pixel moves the token\n(share of the strongest)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=100)
    # The noise of gradients compresses badly; a palette halves the file, and nobody sees it.
    few = Image.open(drawn).convert("RGB").quantize(192, Image.Quantize.MAXCOVERAGE)
    few.save(path, "PNG", optimize=True)


def by_stride(rows: Mapping[str, Sequence[Field]]) -> dict[str, Sequence[Field | None]]:
    """Put fields of one stride into one column, with None where a network has no map of it.

    Where a network has several maps of a stride, it has as many columns.
    """
    most: Counter[int] = Counter()
    for fields in rows.values():
        most |= Counter(field.stride for field in fields)
    put: dict[str, Sequence[Field | None]] = {}
    for name, fields in rows.items():
        line: list[Field | None] = []
        for stride, number in sorted(most.items()):
            its = [field for field in fields if field.stride == stride]
            line += [*its, *[None] * (number - len(its))]
        put[name] = line
    return put


def plot_field(axis: Any, field: Field, crop: int | None) -> Any:
    """Plot one field, and the square that holds half of it."""
    values = field.values / field.values.max()
    height, width = values.shape
    norm = LogNorm(10.0**-DECADES, 1, clip=True)
    picture = axis.imshow(np.maximum(values, 10.0**-DECADES), cmap=COLOURS, norm=norm)
    (y, x), half = field.centre, field.side(0.5)
    corner = (x - half / 2, y - half / 2)
    axis.add_patch(
        Rectangle(corner, half, half, fill=False, edgecolor="w", linestyle="--", linewidth=0.7)
    )
    reach = (crop or max(height, width)) / 2
    axis.set_xlim(max(-0.5, x - reach), min(width - 0.5, x + reach))
    axis.set_ylim(min(height - 0.5, y + reach), max(-0.5, y - reach))
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlabel(f"half (dashed) within {half} pixels", fontsize=7)
    return picture
