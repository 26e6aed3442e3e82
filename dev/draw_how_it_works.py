"""Draw the figures of docs/how_it_works.md: `python dev/draw_how_it_works.py`.

The numbers in them are what `hire_mlp_mm.ops` does. Colours and text are made for a light and for
a dark page, so nothing is black or white, and the background is the page's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from torch import Tensor

from hire_mlp_mm import ops
from hire_mlp_mm.arch import ARCHS

FOLDER = Path(__file__).parents[1] / "docs/images"
COLOURS = ("#3b8ec2", "#e08a1e", "#2a9d76", "#b0609c")  # one for each region
GREY, FAINT = "#7b8087", "#7b808755"
mpl.rcParams.update(
    {"font.size": 12, "text.color": GREY, "svg.hashsalt": "hire", "svg.fonttype": "path"}
)


def figure(width: float, height: float, name: str) -> Axes:
    """Make axes without a frame, one unit a cell of `width` by `height`; `save` writes them."""
    axes = plt.figure(name, figsize=(6, 6 * height / width)).add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return axes


def save(name: str) -> None:
    path = FOLDER / f"{name}.svg"
    plt.figure(name).savefig(path, transparent=True, metadata={"Date": None})
    plt.close(name)
    # matplotlib ends some lines with a space
    path.write_text("".join(f"{line.rstrip()}\n" for line in path.read_text().splitlines()))
    print(f"wrote {path.name}: {path.stat().st_size / 1000:.0f} kB")


def cell(axes: Axes, x: float, y: float, colour: str, text: object = "", padded: bool = False):
    """Draw a token; one that only fills up a region is an empty box."""
    style = dict(fc="none", ec=colour, ls=":") if padded else dict(fc=colour, ec="none")
    axes.add_patch(mpl.patches.FancyBboxPatch(
        (x + 0.1, y + 0.1), 0.8, 0.8, boxstyle="round,pad=0,rounding_size=0.15", lw=1.5, **style
    ))  # fmt: skip
    ink = colour if padded else "#f7f7f7"
    axes.text(x + 0.5, y + 0.53, str(text), ha="center", va="center", color=ink)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour=GREY) -> None:
    axes.annotate("", end, start, arrowprops=dict(arrowstyle="->", color=colour, lw=1.5))


def shifted(size: int, shift: int, region_size: int, *paddings: str) -> list[int]:
    """Return which token `ops.shift` puts where, along a map of `size` tokens; -1 for a zero."""
    tokens = torch.arange(1.0, size + 1).view(1, 1, size, 1)
    return [int(i) - 1 for i in ops.shift(tokens, 2, shift, region_size, *paddings).flatten()]


def draw_inner_region() -> None:
    axes = figure(18, 9, "inner_region")
    region_size, rows, columns = 3, 6, 4
    for left in (0, 14):
        for y in range(rows):
            for x in range(columns):
                cell(axes, left + x, 1 + y, COLOURS[y // region_size])
    for y in range(rows // region_size):
        for x in range(columns):
            cell(axes, 7 + x, 2 + 3 * y, COLOURS[y])
    for x, what in ((5.5, "reduce\n$3C → C/2$"), (12.5, "expand\n$C/2 → 3C$")):
        arrow(axes, (x - 1.1, 4), (x + 1.1, 4))
        axes.text(x, 2.4, what, ha="center", va="center", fontsize=10)
    for x, what in ((2, "6 × 4 tokens\nof $C$ channels"), (9, "2 × 4 regions\nof $C/2$"),
                    (16, "6 × 4 tokens\nof $C$")):  # fmt: skip
        axes.text(x, 8, what, ha="center", va="center")
    save("inner_region")


def draw_row(axes: Axes, y: float, tokens: Sequence[int], regions: Sequence[int], left: float = 0):
    for x, (token, region) in enumerate(zip(tokens, regions, strict=True)):
        cell(axes, left + x, y, COLOURS[region], token + 1)


def draw_cross_region() -> None:
    axes = figure(13, 7.4, "cross_region")
    size, region_size, shift, left = 9, 3, 1, 3.8
    order = shifted(size, shift, region_size)
    places = [order.index(token) // region_size for token in range(size)]
    own = [token // region_size for token in range(size)]
    draw_row(axes, 0.4, range(size), own, left)
    draw_row(axes, 3.2, order, [own[token] for token in order], left)
    draw_row(axes, 5.9, range(size), places, left)
    for region in range(size // region_size):
        x = left + region * region_size
        axes.add_patch(mpl.patches.FancyBboxPatch(
            (x + 0.02, 3.0), 2.96, 1.4, boxstyle="round,pad=0,rounding_size=0.2",
            fc="none", ec=GREY, lw=1.5,
        ))  # fmt: skip
    for place, token in enumerate(order):
        if place % region_size != 1 and token != size - 1:
            arrow(axes, (left + token + 0.5, 1.4), (left + place + 0.5, 3.0), FAINT)
    arrow(axes, (left + size - 0.5, 1.4), (left + 0.5, 3.0), COLOURS[2])
    for y, what in ((0.9, "a row of\nthe map"), (3.7, "shifted by 1,\nin regions of 3"),
                    (6.4, "shifted back:\nwho was mixed")):  # fmt: skip
        axes.text(0, y, what, va="center")
    save("cross_region")


def draw_padding() -> None:
    axes = figure(14.6, 7.4, "padding")
    size, region_size, shift, left = 7, 3, 1, 5.4
    cases = (("circular", "circular"), ("circular", "replicate"), ("circular", "zero"),
             ("zero", "zero"))  # fmt: skip
    axes.text(0, 0.6, "shift", weight="bold", va="center")
    axes.text(2.5, 0.6, "last region", weight="bold", va="center")
    for row, case in enumerate(cases):
        y = 1.3 + 1.5 * row
        for column, word in enumerate(case):
            axes.text(2.5 * column, y + 0.5, word, va="center")
        for place, token in enumerate(shifted(size, shift, region_size, *case)):
            filled = place >= size or token < 0
            text = "0" if token < 0 else token + 1
            cell(axes, left + place, y, COLOURS[place // region_size], text, padded=filled)
    axes.text(left, 0.6, "7 tokens, shifted by 1, in regions of 3", va="center", fontsize=11)
    save("padding")


def box(axes: Axes, x: float, y: float, width: float, text: str, colour: str = GREY) -> None:
    axes.add_patch(mpl.patches.FancyBboxPatch(
        (x - width / 2, y - 0.5), width, 1, boxstyle="round,pad=0,rounding_size=0.25",
        fc="none", ec=colour, lw=1.8,
    ))  # fmt: skip
    axes.text(x, y + 0.03, text, ha="center", va="center", color=colour)


def draw_gate() -> None:
    axes = figure(14, 13.2, "gate")
    axes.text(4, 0.5, "map $x$", ha="center", va="center")
    for x, name, colour in zip(
        (1.6, 4, 6.4), ("height", "width", "channel"), COLOURS, strict=False
    ):
        arrow(axes, (4, 0.9), (x, 2))
        box(axes, x, 2.5, 2.2, name, colour)
        arrow(axes, (x, 3), (x, 9.4), colour)
        arrow(axes, (x, 3), (10.8, 4.1), FAINT)
    steps = ((4.6, "mean of the sum\nover the whole map"), (6.4, "MLP $C → C/4 → 3C$"),
             (8.2, "softmax over the three"))  # fmt: skip
    for y, text in steps:
        axes.text(10.8, y, text, ha="center", va="center")
    arrow(axes, (10.8, 5.2), (10.8, 6))
    arrow(axes, (10.8, 6.8), (10.8, 7.8))
    arrow(axes, (10.8, 8.6), (7.6, 9.9))
    axes.text(
        10.2, 9.7, "a weight for each\nbranch and channel", ha="left", va="center", fontsize=11
    )
    box(axes, 4, 9.9, 7, "weighted sum")
    arrow(axes, (4, 10.4), (4, 11.2))
    box(axes, 4, 11.7, 2.2, "proj")
    arrow(axes, (4, 12.2), (4, 13))
    save("gate")


def reach(size: int, shifts: Sequence[int], region_size: int) -> Tensor:
    """Return which input tokens (size, size) the middle output token sees, past the gate.

    Every layer but the region branches works on each token by itself.
    """
    seen = torch.zeros(size, size, dtype=torch.bool)
    seen[size // 2, size // 2] = True
    for shift in reversed(shifts):
        order = shifted(size, shift, region_size)
        region = torch.tensor([order.index(token) // region_size for token in range(size)])
        mixed = (region[:, None] == region).int()  # whether two tokens of a line share a region
        seen = (mixed @ seen.int() + seen.int() @ mixed) > 0
    return seen


def dotted(seen: Tensor) -> Tensor:
    """Colour tokens (size, size): pixels (10 size, 10 size, 4), with a gap between tokens."""
    colours = torch.tensor([mpl.colors.to_rgba(c) for c in (FAINT, COLOURS[0], COLOURS[1])])
    which = seen.int()
    which[len(seen) // 2, len(seen) // 2] = 2
    pixels = colours[which].repeat_interleave(10, 0).repeat_interleave(10, 1)
    gap = torch.arange(10 * len(seen)) % 10 >= 8
    pixels[gap] = pixels[:, gap] = 0
    return pixels


def draw_reach() -> None:
    size, blocks, stage, small = 21, 4, 2, ARCHS["small"]
    axes = figure(4.9, 2.75, "reach")
    for row, (name, shifts) in enumerate(
        {
            "with\nshifts": [small.shift(stage, block) for block in range(blocks)],
            "without": [0] * blocks,
        }.items()
    ):
        axes.text(0.02, 0.85 + 1.25 * row, name, va="center")
        for block in range(blocks):
            left, top = 0.85 + 1.02 * block, 0.38 + 1.25 * row
            seen = reach(size, shifts[: block + 1], small.region_sizes[stage])
            axes.imshow(dotted(seen), extent=(left, left + 0.95, top + 0.95, top), aspect="auto")
            axes.text(left + 0.47, top - 0.1, f"{seen.sum()} tokens", ha="center", fontsize=10)
    for block in range(blocks):
        what = f"{block + 1} block{'s' * (block > 0)}"
        axes.text(0.85 + 1.02 * block + 0.47, 0.1, what, ha="center", weight="bold")
    save("reach")


def draw_all() -> None:
    draw_inner_region()
    draw_cross_region()
    draw_padding()
    draw_gate()
    draw_reach()


if __name__ == "__main__":
    draw_all()
