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

from ...data.labels import Labels, depth_fault, loaded_fault, shape_fault
from ...data.tree import TURNED, read_header
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
        if reads_locally(step):
            step.backend_args, step.file_client_args = dict(backend=IMAGES), None
        if isinstance(step, LoadImageFromFile):
            replaces |= bool(getattr(step, "ignore_empty", False))
            step.ignore_empty = False  # errors come to `Guarded.prepare_data`
    return replaces


def reads_locally(step: Any) -> bool:
    """Tell whether a step reads files of this machine."""
    named = step.backend_args or getattr(step, "file_client_args", None) or dict(backend="local")
    return named.get("backend") in ("local", "disk", IMAGES)


def meaning_of(dataset: Any) -> Labels:
    """Return what the values of a data set's masks mean; without classes where it has no say."""
    if not hasattr(dataset, "reduce_zero_label"):  # maps other than mmseg's
        return Labels(None)
    return Labels(
        dataset.metainfo.get("classes") or None,
        getattr(dataset, "ignore_index", 255),
        dataset.reduce_zero_label,
        getattr(dataset, "label_map", None),
    )


def is_turned(path: str) -> bool:
    """Tell whether the EXIF of an image has its height and width change places."""
    with suppress(DataError):
        return read_header(path)[2] in TURNED
    return False


class CheckSample(BaseTransform):
    """Compare what was loaded of an image of a data set with what its annotations say."""

    def __init__(self, dataset: Any) -> None:
        meaning = meaning_of(dataset)
        self.meaning = Labels(meaning.classes, meaning.ignore_index)  # of what is loaded

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
            turned, cure = "", "; give it the size that they are for, or correct the annotations"
            if expected == (width, height) and is_turned(str(results.get("img_path"))):
                turned = " (turned as its EXIF says)"
                cure = "; set LoadImageFromFile(color_type='color_ignore_orientation')"
            yield (
                f"the image is read as {width} x {height} pixels{turned}, and its annotations are "
                f"for {expected[1]} x {expected[0]}{cure}"
            )
        if "gt_seg_map" not in results:
            return
        labels, path = results["gt_seg_map"], str(results["seg_map_path"])
        if fault := shape_fault(labels.shape, (height, width)):
            yield f"its mask {path} {fault}"
        if self.meaning.classes is None:
            return
        if fault := loaded_fault(labels, self.meaning):
            yield f"its mask {path} {fault}"
        if os.path.isfile(path):
            with Image.open(path) as mask:
                if mask.mode[0] in "IF" and (fault := depth_fault(np.asarray(mask))):
                    yield f"its mask {path} {fault}"
