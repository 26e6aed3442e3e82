"""Draw predictions into images, by the visualizers of the hosts."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
from mmengine.registry import VISUALIZERS

from ..data.palette import VISUALIZER_OF, Colour
from .drawing import enlarged, places_of

numbers = itertools.count()


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
        chosen = dict(cfg.get("visualizer") or dict(type=VISUALIZER_OF[self.scope]))
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
            size = enlarged(image)
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
        if named := places_of(labels, len(self.classes)):
            places = [place for _, place in named]
            # A name near an edge goes inwards from there.
            thirds = [3 * x // labels.shape[1] for x, _ in places]
            box = dict(facecolor="black", alpha=0.7, pad=1.5, edgecolor="none")
            self.visualizer.draw_texts(
                [self.classes[label] for label, _ in named],
                np.array(places),
                colors="w",
                vertical_alignments="center",
                horizontal_alignments=[("left", "center", "right")[third] for third in thirds],
                bboxes=box,
            )
        return self.visualizer.get_image()
