"""Draw predictions into images, by the visualizers of the hosts."""

from __future__ import annotations

import colorsys
import itertools
import warnings
from typing import Any

import cv2
import numpy as np
from mmengine.registry import VISUALIZERS

Colour = tuple[int, int, int]  # red, green, blue

DEFAULTS = {
    "mmdet": "DetLocalVisualizer",
    "mmseg": "SegLocalVisualizer",
    "mmpretrain": "UniversalVisualizer",
}
LEAST_SIDE = 224  # of a classifier's picture: smaller images have no room for text
LEAST_NAMED = 0.002  # of the pixels of an image, for a class's name to be written
GOLDEN = 0.618034  # of the circle of hues, so that classes in a row differ most
numbers = itertools.count()


def colours(count: int) -> list[Colour]:
    """Make colours for classes without a palette: hues far apart, in turns lighter and darker."""
    made = []
    for i in range(count):
        rgb = colorsys.hsv_to_rgb(i * GOLDEN % 1, (0.85, 0.6)[i % 2], (1.0, 0.75, 0.9)[i % 3])
        made.append((round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])))
    return made


def palette_for(palette: Any, count: int) -> list[Colour]:
    """Return a palette as a list, or one of our own where it has too few colours or is a word."""
    if not isinstance(palette, (list, tuple)) or len(palette) < count:
        return colours(count)
    return [(int(r), int(g), int(b)) for r, g, b in palette]


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Make a picture to draw on of what a pipeline has loaded.

    Args:
        image: (H, W) or (H, W, C), grey, BGR or BGR and more, of 8 or 16 bits or float.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    if image.dtype == np.uint16:
        image = image // 257
    image = image.clip(0, 255).astype(np.uint8)
    image = image[..., None] if image.ndim == 2 else image
    image = image[..., :1].repeat(3, axis=2) if image.shape[2] < 3 else image[..., 2::-1]
    return np.ascontiguousarray(image)


class Artist:
    """Draw the predictions of a model of one host."""

    def __init__(self, cfg: Any, classes: list[str], palette: list[Colour]) -> None:
        """Build the visualizer that the config names, or the host's own, without its backends."""
        self.scope: str = cfg.default_scope
        chosen = dict(cfg.get("visualizer") or dict(type=DEFAULTS[self.scope]))
        # mmengine wants a name for each.
        chosen.update(vis_backends=None, save_dir=None, name=f"predict{next(numbers)}")
        if self.scope == "mmseg":
            chosen.setdefault("alpha", 0.5)  # its 0.8 hides the photograph
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there are no backends
            self.visualizer: Any = VISUALIZERS.build(chosen)
        self.visualizer.dataset_meta = dict(classes=classes, palette=palette)
        self.classes = classes

    def draw(self, image: np.ndarray, sample: Any) -> np.ndarray:
        """Draw a data sample into a copy of an image (H, W, 3), RGB; a small one grows."""
        if self.scope == "mmpretrain":
            short = min(image.shape[:2])
            size = LEAST_SIDE if short < LEAST_SIDE else None
            return self.visualizer.visualize_cls(image, sample, draw_gt=False, resize=size)
        options: dict[str, Any] = dict(draw_gt=False)
        # MMSegmentation sorts every pixel to find a place for a name.
        options.update({"with_labels": False} if self.scope == "mmseg" else {"pred_score_thr": -1})
        self.visualizer.add_datasample("", image, sample, **options)
        if self.scope == "mmseg":
            return self.write_names(sample.pred_sem_seg.data[0].numpy())
        return self.visualizer.get_image()

    def write_names(self, labels: np.ndarray) -> np.ndarray:
        """Write the names of the classes of (H, W) labels where their areas are widest."""
        names, places = [], []
        for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
            if label < len(self.classes) and count >= LEAST_NAMED * labels.size:
                names.append(self.classes[label])
                places.append(innermost(labels == label))
        if names:
            # A name near an edge goes inwards from there.
            thirds = [3 * x // labels.shape[1] for x, _ in places]
            box = dict(facecolor="black", alpha=0.7, pad=1.5, edgecolor="none")
            self.visualizer.draw_texts(
                names,
                np.array(places),
                colors="w",
                vertical_alignments="center",
                horizontal_alignments=[("left", "center", "right")[third] for third in thirds],
                bboxes=box,
            )
        return self.visualizer.get_image()


def innermost(area: np.ndarray) -> tuple[int, int]:
    """Return x and y of the pixel of an area (H, W) that is farthest from its edge."""
    padded = np.pad(area, 1).astype(np.uint8)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, 3)
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    return int(x) - 1, int(y) - 1
