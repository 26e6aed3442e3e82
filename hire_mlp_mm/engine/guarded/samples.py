"""Check what a pipeline loads of one image, and say what went wrong with it in which step."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform, LoadAnnotations, LoadImageFromFile
from PIL import Image

from ...errors import DataError, describe
from ...files import IMAGES


def steps(pipeline: Any) -> Iterator[Any]:
    """Yield the steps of a pipeline, and of the pipelines within them."""
    if isinstance(pipeline, (list, tuple)):
        for step in pipeline:
            yield from steps(step)
        return
    yield pipeline
    for name in ("transforms", "subroutines"):
        yield from steps(getattr(pipeline, name, ()))


def failed_step(error: Exception, pipeline: Any) -> BaseTransform | None:
    """Find the innermost step of a pipeline that an error has passed, by the code that ran."""
    transforms = [step for step in steps(pipeline) if isinstance(step, BaseTransform)]
    by_code = {getattr(type(step).transform, "__code__", None): step for step in transforms}
    passed = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((by_code[code] for code in reversed(passed) if code in by_code), None)


def fault(error: Exception, step: BaseTransform | None, info: dict[str, Any]) -> str:
    """Say what went wrong with an image in a step, for a line that begins with the image's name."""
    mask = f"its mask {info.get('seg_map_path')}"
    loads_mask = isinstance(step, LoadAnnotations)
    if isinstance(error, DataError):  # of `files.WholeImages` or `CheckSample`
        return f"{mask}: {error}" if loads_mask else str(error)
    undecoded = "cannot be decoded: truncated, damaged or of an unknown format"
    if isinstance(step, LoadImageFromFile):
        return f"the image {undecoded} ({describe(error)})"
    if loads_mask and "gt_seg_map" not in info and isinstance(error, AttributeError):
        return f"{mask} {undecoded}"  # there is no image whose shape could be asked for
    name = type(step).__name__ if step is not None else "the pipeline"
    with suppress(KeyError, OSError, TypeError), Image.open(info["img_path"]) as image:
        name += f" of an image of {image.width} x {image.height} pixels"
    return f"{name} failed with {describe(error)}"


def add_checks(pipeline: Any, check: CheckSample) -> bool:
    """Check what a pipeline loads, of whole files; tell whether it replaces unreadable images."""
    replaces = False
    if not isinstance(pipeline, list):
        for name in ("transforms", "subroutines"):
            replaces |= add_checks(getattr(pipeline, name, []), check)
        return replaces
    for i, step in reversed([*enumerate(pipeline)]):
        if not isinstance(step, (LoadImageFromFile, LoadAnnotations)):
            replaces |= add_checks(step, check)
            continue
        pipeline.insert(i + 1, check)
        local = dict(backend="local")
        named = step.backend_args or getattr(step, "file_client_args", None) or local
        if named.get("backend") in ("local", "disk"):
            step.backend_args, step.file_client_args = dict(backend=IMAGES), None
        if isinstance(step, LoadImageFromFile):
            replaces |= bool(getattr(step, "ignore_empty", False))
            step.ignore_empty = False  # errors come to `Guarded.prepare_data`
    return replaces


class CheckSample(BaseTransform):
    """Compare what was loaded of an image of a data set with what its annotations say."""

    def __init__(self, dataset: Any) -> None:
        # mmseg's labels index the classes; other maps have meanings of their own.
        self.classes = None
        if hasattr(dataset, "reduce_zero_label"):
            self.classes = len(dataset.metainfo.get("classes") or ()) or None
        self.ignored = getattr(dataset, "ignore_index", 255)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Raise DataError where sizes or labels do not fit."""
        for fault in self.faults(results):
            raise DataError(fault)
        return results

    def faults(self, results: dict[str, Any]) -> Iterator[str]:
        """Yield what is wrong, for a line that begins with the image's name."""
        if "ori_shape" not in results:
            return
        height, width = results["ori_shape"][:2]
        expected = results.get("height") or height, results.get("width") or width
        if expected != (height, width):
            yield (
                f"the image is read as {width} x {height} pixels (rotated as its EXIF says), and "
                f"its annotations are for {expected[1]} x {expected[0]}"
            )
        if "gt_seg_map" not in results:
            return
        labels, path = results["gt_seg_map"], str(results["seg_map_path"])
        if labels.shape != (height, width):
            yield (
                f"its mask {path} is read with the shape {labels.shape}; expected "
                f"{(height, width)} as the image, with one class per pixel"
            )
        if self.classes is None:
            return
        wrong = labels[(labels >= self.classes) & (labels != self.ignored)]
        if wrong.size:
            yield (
                f"its mask {path} has the label {wrong[0]} in {wrong.size} pixels; expected 0 to "
                f"{self.classes - 1}, or {self.ignored} for pixels to ignore"
            )
        if os.path.isfile(path):
            with Image.open(path) as mask:
                if mask.mode[0] in "IF" and (largest := int(np.asarray(mask).max())) > 255:
                    yield f"its mask {path} has the label {largest}; mmseg reads 8 bits of it"
