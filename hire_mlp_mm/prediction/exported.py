"""Predict with an exported file; neither torch nor OpenMMLab is imported."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.palette import palette_for
from ..deploy.runtime import Outputs, Runtime
from ..errors import UserError
from .base import BasePredictor, Prediction, Prepared
from .drawing import draw_boxes, draw_class, draw_labels
from .inputs import Shot, load_image
from .results import NO_CLASS, choose, first_classes, instances, label_map


class ExportedPredictor(BasePredictor):
    """Predict with an exported file on the CPU; see `BasePredictor`.

    Attributes:
        runtime: what runs the file.

    Examples:
        >>> predictor = hire_mlp_mm.prediction.ExportedPredictor("mask_rcnn.onnx")
        >>> for found in predictor("photographs"):
        ...     print(found.source.name, found.results)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        score_thr: float | None = None,
        classes: Sequence[str] | None = None,
        batch_size: int = 1,
        engine: str | None = None,
        dtype: str | None = None,
    ) -> None:
        """Open a file.

        Args:
            path: an `.onnx` file that `hire-mlp export` has written.
            score_thr: see `Predictor`.
            classes: see `Predictor`.
            batch_size: see `Predictor`; a detector's file takes one image.
            engine: see `Runtime`; None for onnxruntime.
            dtype: see `Runtime`; None for float32, `auto` for bfloat16.

        Raises:
            UserError: an argument or the file cannot be used.
        """
        super().__init__(batch_size)
        engine = engine or "onnxruntime"
        dtype = "bfloat16" if dtype == "auto" else dtype or "float32"
        self.runtime = Runtime(path, engine, dtype=dtype)
        self.runtime.check()
        self.task, self.classes = self.runtime.task, self.runtime.classes
        if batch_size > 1 and self.task == "detection":
            raise UserError(f"batch size {batch_size}: expected 1, for a detector's file")
        self.palette = palette_for(self.runtime.fact("palette"), len(self.classes))
        self.choice = choose(score_thr, classes, self.classes, self.task)
        self.loader = load_image
        self.origin = f"{self.runtime.path}, on cpu, by {engine}"

    def prepare(self, shot: Shot) -> Prepared:
        """Prepare an image as the config's test pipeline does."""
        image = shot.results["img"]
        data = self.runtime.prepare(image)
        return Prepared(shot, np.ascontiguousarray(image[..., ::-1]), data, data.shape)

    def forward(self, batch: list[Prepared]) -> list[Outputs]:
        """Return what `Runtime.finish` gives for each image, of what is wanted."""
        outputs = self.runtime.split(self.runtime(np.concatenate([one.data for one in batch])))
        return [self.finish(*pair) for pair in zip(outputs, batch, strict=True)]

    def finish(self, outputs: Outputs, one: Prepared) -> Outputs:
        """Finish the outputs for an image; pixels whose class is not wanted are marked."""
        size = one.image.shape[:2]
        found = self.runtime.finish(outputs, size, one.shape[2:], self.choice.order)
        if self.task == "segmentation":
            labels = found["labels"]
            found["labels"] = np.where(self.choice.has(labels), labels, np.uint16(NO_CLASS))
        return found

    def results_of(self, sample: Outputs) -> Any:
        """Return the plain results; see `Prediction`."""
        if self.task == "detection":
            boxes, scores, labels = (sample[name] for name in ("boxes", "scores", "labels"))
            return instances(boxes, scores, labels, sample.get("masks"), self.classes)
        if self.task == "segmentation":
            return label_map(sample["labels"], len(self.classes))
        return first_classes(sample["scores"], self.classes, self.choice)

    def draw(self, found: Prediction) -> np.ndarray:
        """Draw a prediction into a copy of its image: (H, W, 3) uint8, RGB."""
        if self.task == "detection":
            return draw_boxes(found.image, found.sample, self.classes, self.palette)
        if self.task == "segmentation":
            return draw_labels(found.image, found.sample["labels"], self.classes, self.palette)
        return draw_class(found.image, next(iter(found.results), None))
