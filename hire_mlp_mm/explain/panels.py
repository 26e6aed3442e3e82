"""Draw an image and its heat maps side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from ..data.palette import Colour
from ..prediction.drawing import LEAST_SIDE, Drawing

if TYPE_CHECKING:
    from .heat import Heat

MOST_SIDE = 640  # of a panel, in pixels
MOST_LONG = 2 * MOST_SIDE  # of a panel of a long, narrow image
LEAST_SIDES = (96, LEAST_SIDE)  # height and width of a panel: room for the name above the image
MOST_ABREAST = 4
GAP = 6  # pixels between panels
DIM = 0.35  # of an image's light where nothing matters


def panels(image: np.ndarray, heats: Sequence[Heat], colours: Sequence[Colour]) -> np.ndarray:
    """Draw an image (H, W, 3) and a panel for each heat map: (H', W', 3) uint8, RGB.

    Small images grow and large ones shrink; outlines have the colour of their class. Long, narrow
    images get a margin for the names, and wide ones lie one below the other.
    """
    height, width = image.shape[:2]
    scale = min(1.0, MOST_SIDE / max(height, width))
    scale = max(scale, LEAST_SIDE / min(height, width))
    scale = min(scale, MOST_LONG / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    drawn = [panel(small, heat, colour) for heat, colour in zip(heats, colours, strict=True)]
    return grid([with_margin(small), *drawn])


def panel(image: np.ndarray, heat: Heat, colour: Colour) -> np.ndarray:
    """Draw one heat map into a copy of an image, with what it explains outlined and named."""
    height, width = image.shape[:2]
    glow = cv2.resize(heat.map, (width, height))
    lit = glowing(image, glow)
    if heat.area is not None:
        area = cv2.resize(heat.area.astype(np.uint8), (width, height))
        edges, _ = cv2.findContours(area, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(lit, edges, -1, colour, 1)
    drawing = Drawing(lit)
    if heat.boxes is not None:
        scale = width / heat.map.shape[1]
        for box in heat.boxes:
            drawing.frame(box * scale, colour)
    drawing = Drawing(with_margin(drawing.array()))
    drawing.write(heat.title, (0, 0), colour)
    return drawing.array()


def with_margin(picture: np.ndarray) -> np.ndarray:
    """Give a picture (H, W, 3) margins above and at its right, up to `LEAST_SIDES`."""
    above, right = (
        max(0, least - side) for least, side in zip(LEAST_SIDES, picture.shape, strict=False)
    )
    margins = [(above, 0), (0, right), (0, 0)]
    return np.pad(picture, margins, constant_values=255)


def glowing(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Dim an image (H, W, 3), and have it glow by a heat map (H, W) from 0 to 1."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    colour = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    strength = heat[..., None] ** 0.5
    mixed = DIM * (1 - strength) * grey + strength * (0.35 * image + 0.65 * colour)
    return np.ascontiguousarray(mixed.clip(0, 255).astype(np.uint8))


def grid(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Set pictures of one size (H, W, 3) side by side, in rows as even as can be."""
    height, width = pictures[0].shape[:2]
    rows = math.ceil(len(pictures) / (MOST_ABREAST if width <= MOST_SIDE else 1))
    columns = math.ceil(len(pictures) / rows)
    shape = (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3)
    whole = np.full(shape, 255, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = i // columns * (height + GAP), i % columns * (width + GAP)
        whole[y : y + height, x : x + width] = picture
    return whole
