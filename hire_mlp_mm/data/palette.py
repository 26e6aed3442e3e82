"""Choose the colours of classes in pictures, and who draws them."""

from __future__ import annotations

import colorsys
from typing import Any

Colour = tuple[int, int, int]  # red, green, blue

# The visualizer of each host, for a config that names none.
VISUALIZER_OF = {
    "mmdet": "DetLocalVisualizer",
    "mmseg": "SegLocalVisualizer",
    "mmpretrain": "UniversalVisualizer",
}
GOLDEN = 0.618034  # of the circle of hues, so that classes in a row differ most


def colours(number: int) -> list[Colour]:
    """Make colours for classes without a palette: hues far apart, in turns lighter and darker."""
    made = []
    for i in range(number):
        rgb = colorsys.hsv_to_rgb(i * GOLDEN % 1, (0.85, 0.6)[i % 2], (1.0, 0.75, 0.9)[i % 3])
        made.append((round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])))
    return made


def palette_for(palette: Any, number: int) -> list[Colour]:
    """Return a palette as a list, or `colours` where it has too few of them or is a word."""
    if not isinstance(palette, (list, tuple)) or len(palette) < number:
        return colours(number)
    return [(int(r), int(g), int(b)) for r, g, b in palette]
