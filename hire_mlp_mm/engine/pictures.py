"""Draw the predictions of a test into a folder, by the visualizer of the host."""

from __future__ import annotations

import os
from typing import Any

import cv2
import mmcv
import numpy as np
from mmengine.fileio import get
from mmengine.hooks import Hook

from ..data.palette import palette_for
from ..prediction.drawing import enlarged
from ..registry import HOOKS


@HOOKS.register_module()
class PicturesHook(Hook):
    """Draw each prediction of a test beside its truth, if there is one, into a file of its own.

    The files have the names of the images, with the folders in which these lie below the one that
    has all of them.

    Args:
        folder: to write to; nothing is written elsewhere.
        score_thr: least score of a detector's boxes that are drawn.
        backend_args: for reading the images, as the pipeline has them.
    """

    def __init__(
        self, folder: str, score_thr: float = 0.3, backend_args: dict[str, Any] | None = None
    ) -> None:
        self.folder, self.score_thr, self.backend_args = folder, score_thr, backend_args
        self.root = os.sep
        self.drawn = 0

    def before_test(self, runner: Any) -> None:
        self.root = common_folder(runner.test_dataloader.dataset)
        meta = dict(runner.visualizer.dataset_meta or {})
        # The hosts have no colours for more classes than a palette has, and mmdet lends COCO's 80.
        if meta.get("classes"):
            meta["palette"] = palette_for(meta.get("palette"), len(meta["classes"]))
        runner.visualizer.dataset_meta = meta

    def after_test_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        for i, sample in enumerate(outputs):
            path = sample.get("img_path")
            name = os.path.relpath(os.path.abspath(path), self.root) if path else str(self.drawn)
            file = os.path.join(self.folder, name)
            file = file if path and cv2.haveImageWriter(file) else f"{file}.png"
            image = self.read(path) if path else as_image(data_batch["inputs"][i])
            draw(runner.visualizer, image, sample, file, self.score_thr)
            self.drawn += 1

    def read(self, path: str) -> np.ndarray:
        """Read an image (H, W, 3), RGB."""
        content = get(path, backend_args=self.backend_args)
        image: np.ndarray = mmcv.imfrombytes(content, channel_order="rgb")
        return image


def common_folder(dataset: Any) -> str:
    """Return the innermost folder that has all images of a data set; `/` where it does not say."""
    if not hasattr(dataset, "get_data_info"):
        return os.sep
    paths = (dataset.get_data_info(i).get("img_path") for i in range(len(dataset)))
    folders = {os.path.dirname(os.path.abspath(path)) for path in paths if path}
    return os.path.commonpath(folders) if folders else os.sep


def as_image(inputs: Any) -> np.ndarray:
    """Turn a tensor (C, H, W) of a batch into an image (H, W, C) uint8."""
    image: np.ndarray = inputs.permute(1, 2, 0).cpu().numpy().astype(np.uint8)
    return image


def draw(visualizer: Any, image: np.ndarray, sample: Any, file: str, score_thr: float) -> None:
    """Draw a data sample of any of the hosts into an image (H, W, 3), RGB, and write it."""
    if hasattr(visualizer, "visualize_cls"):
        visualizer.visualize_cls(image, sample, resize=enlarged(image), out_file=file)
        return
    # Of MMDetection's and MMSegmentation's samples, only the first one's have scores.
    options = dict(pred_score_thr=score_thr) if "pred_instances" in sample else {}
    visualizer.add_datasample("", image, sample, out_file=file, **options)
