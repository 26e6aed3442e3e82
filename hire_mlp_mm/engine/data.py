"""Guard the hosts' data sets and metrics: name the file that is wrong, and count what is skipped.

OpenMMLab's data sets drop what they cannot use without a word, and some of what they do not drop
makes a wrong figure: a JPEG that ends early is grey from there on (OpenCV before 4.11), a mask of
another size is reshaped, a category list in another order gives names to the wrong labels.

A config names a guarded class by this package's scope: `hire_mlp_mm.CocoDataset` is the class that
`CocoDataset` names there.
"""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging import WARNING
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform, LoadAnnotations, LoadImageFromFile
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from PIL import Image

from ..errors import DataError, UserError, describe
from ..files import IMAGES
from ..registry import DATASETS, METRICS
from .coco import check_coco, count_skipped


@functools.cache
def guard_dataset(host: Any) -> Any:
    """Return a data set's class with checks; as it is, where it does not read files as mmengine."""
    if not isinstance(host, type) or not issubclass(host, BaseDataset):
        return host
    base, read = Guarded, getattr(host, "load_data_list", None)
    if hasattr(host, "COCOAPI"):
        from mmdet.datasets import CocoDataset

        if read is CocoDataset.load_data_list:  # not in a way of its own
            base = GuardedCoco
    return type(host.__name__, (base, host), dict(host=host, __doc__=host.__doc__))


@functools.cache
def guard_metric(host: Any) -> Any:
    """Return a metric's class that names the annotation file which it cannot read."""

    class Metric(host):
        __doc__ = host.__doc__

        def __init__(self, *args: Any, **options: Any) -> None:
            with reading("annotation file ", options.get("ann_file")):
                super().__init__(*args, **options)

    Metric.__name__ = Metric.__qualname__ = host.__name__
    return Metric


DATASETS.guard, METRICS.guard = guard_dataset, guard_metric


@contextmanager
def reading(what: str, source: str | None) -> Iterator[None]:
    """Name the annotation file, or folders, that cannot be read."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not source:
            raise
        if isinstance(error, FileNotFoundError):
            raise DataError(f"{error.filename or source} not found") from error
        raise DataError(f"{what}{source} cannot be read: {describe(error)}") from error


def empty_dataset(host: type) -> Any:
    """Make an empty data set for pickle, which finds no class of ours by its name."""
    guarded = guard_dataset(host)
    return guarded.__new__(guarded)


# Functions, for the data sets are other people's classes, which may have names of their own.
def source_of(dataset: Any) -> str:
    """Return the annotation file of a data set, or else its folders."""
    prefixes: Any = dataset.data_prefix
    folders = prefixes.values() if isinstance(prefixes, dict) else [prefixes]
    return dataset.ann_file or " and ".join(str(folder) for folder in folders if folder)


def losses_of(dataset: Any) -> str:
    """Count the boxes of a data set that were skipped, by reason, in words."""
    boxes = getattr(dataset, "skipped", {}).items()
    return "".join(f"; skipped {count} boxes {reason}" for reason, count in boxes)


class Guarded(BaseDataset):
    """Say which of a data set's files is wrong; mixed into a host's class."""

    host: type[BaseDataset]
    refused = 0  # images in a row, by the pipeline
    replaced = 0  # unreadable images, by the host's `ignore_empty`
    was_read = False  # the annotation file
    was_prepared = False

    def __reduce__(self) -> Any:
        return empty_dataset, (self.host,), self.__dict__

    def load_data_list(self) -> list[dict[str, Any]]:
        with reading("annotation file " if self.ann_file else "", source_of(self)):
            data_list = list(super().load_data_list())
        self.was_read = True
        return data_list

    def full_init(self) -> None:
        try:
            super().full_init()
        except Exception as error:
            if isinstance(error, UserError) or not self.was_read or self.data_list:
                raise
            raise self.no_images() from error
        if len(self) == 0:
            raise self.no_images()
        if not self.was_prepared:
            self.was_prepared = True
            self.replaces = add_checks(self.pipeline, CheckSample(self)) and not self.test_mode
            if hasattr(self, "skipped"):
                counts = f"{len(self)} of {self.images} images, {self.background} without boxes"
                print_log(f"{source_of(self)}: {counts}{losses_of(self)}", logger="current")

    def no_images(self) -> DataError:
        """Make the error of a data set that has no images left."""
        return DataError(f"{source_of(self)}: no images for {type(self).__name__}{losses_of(self)}")

    def prepare_data(self, idx: int) -> Any:
        sample = None
        try:
            sample = super().prepare_data(idx)
        except Exception as error:
            step = failed_step(error, self.pipeline)
            line = f"{self.path(idx)}: {fault(error, step, self.get_data_info(idx))}"
            if isinstance(error, FileNotFoundError):
                line = f"{error.filename or self.path(idx)} not found"
            if not (self.replaces and isinstance(step, LoadImageFromFile)):
                raise DataError(line) from error
            self.replaced += 1
            line += f"; replaced by another image ({self.replaced} times so far, in this process)"
            print_log(line, logger="current", level=WARNING)
        self.refused = 0 if sample is not None else self.refused + 1
        if self.refused > self.max_refetch:
            raise DataError(
                f"{self.path(idx)}: the pipeline has refused {self.refused} images in a row"
            )
        return sample

    def path(self, idx: int) -> str:
        """Return the file of an image."""
        return str(self.get_data_info(idx).get("img_path", f"image {idx} of {source_of(self)}"))


class GuardedCoco(Guarded):
    """Check and count the COCO file of a data set of mmdet's, or one like it."""

    COCOAPI: Any

    def load_data_list(self) -> list[dict[str, Any]]:
        from mmdet.datasets.api_wrappers import COCO

        if type(self).COCOAPI is not COCO:  # panoptic files and others hold something else
            return super().load_data_list()
        content: dict[str, Any] = {}

        def read(path: str) -> Any:
            coco = COCO(path)
            content.update(coco.dataset)
            check_coco(content, self)
            return coco

        self.COCOAPI = read
        try:
            data_list = super().load_data_list()
        finally:
            del self.COCOAPI
        self.images = len(data_list)
        self.background = sum(not info["instances"] for info in data_list)
        self.skipped = count_skipped(content, self)
        return data_list


# One image --------------------------------------------------------------------------------------


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
