"""Draw predictions into images by Pillow, where no host's visualizer is at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..data.palette import Colour

LEAST_NAMED = 0.002  # of the pixels of an image, for a class's name to be written
TINT = 110  # of 255, of a colour over an image
LEAST_SIDE = 224  # of a classifier's picture: smaller images have no room for text


class Drawing:
    """Draw into a copy of an image.

    Args:
        image: (H, W, 3) uint8, RGB.
    """

    def __init__(self, image: np.ndarray) -> None:
        self.picture = Image.fromarray(image)
        self.pen = ImageDraw.Draw(self.picture)
        side = min(self.picture.size)
        self.width = max(2, round(side / 240))
        self.font: Any = ImageFont.load_default(max(11, round(side / 32)))

    def tint(self, area: np.ndarray, colour: Colour) -> None:
        """Mix a colour into an area (H, W) of bool."""
        mask = Image.fromarray(area.astype(np.uint8) * TINT)
        self.picture.paste(colour, (0, 0), mask)

    def write(
        self,
        text: str,
        place: Sequence[float],
        colour: Colour,
        anchor: tuple[float, float] = (0, 0),
    ) -> None:
        """Write on a bar of a colour, all of it within the picture.

        Args:
            text: a line.
            place: x and y of a point, in pixels.
            colour: of the bar.
            anchor: where in the bar the point is, from (0, 0), its upper left corner, to (1, 1).
        """
        _, top, right, bottom = self.pen.textbbox((0, 0), text, self.font)
        pad = self.width
        width, height = right + 2 * pad, bottom + top + 2 * pad
        x = max(0, min(place[0] - anchor[0] * width, self.picture.width - width))
        y = max(0, min(place[1] - anchor[1] * height, self.picture.height - height))
        self.pen.rectangle((x, y, x + width, y + height), fill=colour)
        self.pen.text((x + pad, y + pad), text, "white" if is_dark(colour) else "black", self.font)

    def frame(self, box: np.ndarray, colour: Colour) -> None:
        """Draw the edges of a box, x1 y1 x2 y2."""
        x1, y1, x2, y2 = box.tolist()
        self.pen.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=colour, width=self.width)

    def array(self) -> np.ndarray:
        """Return the picture (H, W, 3) uint8, RGB."""
        return np.array(self.picture)


def is_dark(colour: Colour) -> bool:
    """Tell whether white text is legible on a colour."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 150


def draw_boxes(
    image: np.ndarray, found: dict[str, np.ndarray], classes: list[str], palette: list[Colour]
) -> np.ndarray:
    """Draw boxes (n, 4), with their masks (n, H, W), the best on top."""
    drawing = Drawing(image)
    order = range(len(found["boxes"]))[::-1]
    colours = [palette[label] for label in found["labels"]]
    for i in order if "masks" in found else ():
        drawing.tint(found["masks"][i], colours[i])
    for i in order:
        drawing.frame(found["boxes"][i], colours[i])
    for i in order:
        text = f"{classes[found['labels'][i]]} {100 * found['scores'][i]:.0f}%"
        drawing.write(text, found["boxes"][i], colours[i], anchor=(0, 1))
    return drawing.array()


def draw_labels(
    image: np.ndarray, labels: np.ndarray, classes: list[str], palette: list[Colour]
) -> np.ndarray:
    """Draw the labels (H, W) of pixels; a larger number than there are classes is none."""
    drawing = Drawing(image)
    for label in np.unique(labels[labels < len(classes)]):
        drawing.tint(labels == label, palette[label])
    for label, place in places_of(labels, len(classes)):
        drawing.write(classes[label], place, palette[label], anchor=(0.5, 0.5))
    return drawing.array()


def draw_class(image: np.ndarray, result: dict[str, Any] | None) -> np.ndarray:
    """Draw the best class of an image, one of `results.first_classes`; a small one grows."""
    if side := enlarged(image):
        ratio = side / min(image.shape[:2])
        image = cv2.resize(image, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_LINEAR)
    drawing = Drawing(image)
    if result:
        drawing.write(f"{result['class']} {100 * result['score']:.0f}%", (0, 0), (0, 0, 0))
    return drawing.array()


def enlarged(image: np.ndarray) -> int | None:
    """Return the side in pixels to which a classifier's image (H, W, 3) has to grow, if it has."""
    return LEAST_SIDE if min(image.shape[:2]) < LEAST_SIDE else None


def places_of(labels: np.ndarray, count: int) -> list[tuple[int, tuple[int, int]]]:
    """Return the labels below `count` in (H, W), and where in their areas to write their names."""
    numbers = zip(*np.unique(labels, return_counts=True), strict=True)
    wide = [x for x, pixels in numbers if x < count and pixels >= LEAST_NAMED * labels.size]
    return [(int(label), innermost(labels == label)) for label in wide]


def innermost(area: np.ndarray) -> tuple[int, int]:
    """Return x and y of the pixel of an area (H, W) that is farthest from its edge."""
    padded = np.pad(area, 1).astype(np.uint8)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, 3)
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    return int(x) - 1, int(y) - 1
