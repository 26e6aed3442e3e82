"""The hosts' data sets and metrics, guarded: a wrong file is named, and what is skipped is counted.

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

LOADING = (LoadImageFromFile, LoadAnnotations)


@functools.cache
def guard_dataset(host: Any) -> Any:
    """Return a data set's class with checks; as it is, where it does not read files as mmengine."""
    if not isinstance(host, type) or not issubclass(host, BaseDataset):
        return host
    base = GuardedCoco if reads_coco(host) else Guarded
    return type(host.__name__, (base, host), dict(host=host, __doc__=host.__doc__))


def reads_coco(host: Any) -> bool:
    """Tell whether a data set reads its file as mmdet's CocoDataset does, not in its own way."""
    if not hasattr(host, "COCOAPI"):
        return False
    from mmdet.datasets import CocoDataset

    return host.load_data_list is CocoDataset.load_data_list


@functools.cache
def guard_metric(host: Any) -> Any:
    """Return a metric's class that names the annotation file which it cannot read."""

    class Metric(host):
        __doc__ = host.__doc__

        def __init__(self, *args: Any, **options: Any) -> None:
            try:
                super().__init__(*args, **options)
            except UserError:
                raise
            except Exception as error:
                if not options.get("ann_file"):
                    raise
                raise unreadable(options["ann_file"], error) from error

    Metric.__name__ = Metric.__qualname__ = host.__name__
    return Metric


DATASETS.guard, METRICS.guard = guard_dataset, guard_metric


def unreadable(place: str, error: Exception, is_file: bool = True) -> DataError:
    """Make the error of an annotation file, or folders, that a data set or a metric cannot read."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{error.filename or place} not found")
    what = "annotation file " if is_file else ""
    return DataError(f"{what}{place} cannot be read: {describe(error)}")


def rebuild(host: type) -> Any:
    """Make an empty data set for pickle, which finds no class of ours by its name."""
    kind = guard_dataset(host)
    return kind.__new__(kind)


class Guarded(BaseDataset):
    """Say which of a data set's files is wrong; mixed into a host's class."""

    host: type[BaseDataset]
    refused = 0  # images in a row, by the pipeline
    replaced = 0  # unreadable images, by the host's `ignore_empty`
    reported = False
    listed = False  # whether its file was read

    def __reduce__(self) -> Any:
        return rebuild, (self.host,), self.__dict__

    def load_data_list(self) -> list[dict[str, Any]]:
        try:
            found = list(super().load_data_list())
        except UserError:
            raise
        except Exception as error:
            raise unreadable(place(self), error, bool(self.ann_file)) from error
        self.listed = True
        return found

    def full_init(self) -> None:
        try:
            super().full_init()
        except UserError:
            raise
        except Exception as error:
            if self.listed and not self.data_list:
                raise DataError(no_images(self)) from error
            raise
        if len(self) == 0:
            raise DataError(no_images(self))
        if not self.reported:
            self.reported = True
            self.replaces = add_checks(self.pipeline, CheckSample(self)) and not self.test_mode
            report(self)

    def prepare_data(self, idx: int) -> Any:
        try:
            sample = super().prepare_data(idx)
        except Exception as error:
            self.replace_or_raise(idx, error)
            sample = None
        self.refused = 0 if sample is not None else self.refused + 1
        if self.refused > self.max_refetch:
            raise DataError(
                f"{self.path(idx)}: the pipeline has refused {self.refused} images in a row"
            )
        return sample

    def replace_or_raise(self, idx: int, error: Exception) -> None:
        """Pass over an image that cannot be read, where the config wants that.

        Raises:
            DataError: it does not; names the image.
        """
        info = self.get_data_info(idx)
        step = failed_step(error, self.pipeline)
        if isinstance(error, FileNotFoundError):
            line = f"{error.filename or self.path(idx)} not found"
        else:
            line = f"{self.path(idx)}: {fault(error, step, info)}"
        if not (self.replaces and isinstance(step, LoadImageFromFile)):
            raise DataError(line) from error
        self.replaced += 1
        print_log(
            f"{line}; replaced by another image ({self.replaced} times so far, in this process)",
            logger="current",
            level=WARNING,
        )

    def path(self, idx: int) -> str:
        """Return the file of an image."""
        info = self.get_data_info(idx)
        return str(info.get("img_path", f"image {idx} of {place(self)}"))


class GuardedCoco(Guarded):
    """Check and count the COCO file of a data set of mmdet's, or one like it."""

    COCOAPI: Any

    def load_data_list(self) -> list[dict[str, Any]]:
        from mmdet.datasets.api_wrappers import COCO

        kind = type(self).COCOAPI
        if kind is not COCO:  # panoptic files and others hold something else
            return super().load_data_list()
        read: list[Any] = []

        def api(path: str) -> Any:
            read.append(kind(path))
            check_coco(read[0].dataset, self)
            return read[0]

        self.COCOAPI = api
        try:
            data_list = super().load_data_list()
        finally:
            del self.COCOAPI
        self.images = len(data_list)
        self.background = sum(not one["instances"] for one in data_list)
        self.skipped = count_skipped(read[0].dataset, self)
        return data_list


def place(dataset: Any) -> str:
    """Say where a data set comes from: its annotation file or else its folders."""
    prefixes: Any = dataset.data_prefix
    folders = prefixes.values() if isinstance(prefixes, dict) else [prefixes]
    return dataset.ann_file or " and ".join(str(one) for one in folders if one)


def no_images(dataset: Any) -> str:
    """Say that a data set has no images, and what was skipped."""
    return f"{place(dataset)}: no images for {type(dataset).__name__}{list_skipped(dataset)}"


def list_skipped(dataset: Any) -> str:
    """Say what was skipped, by reason."""
    boxes = getattr(dataset, "skipped", {})
    return "".join(f"; skipped {count} boxes {reason}" for reason, count in boxes.items())


def report(dataset: Any) -> None:
    """Log what a COCO data set has of its file, and what it left out: one line."""
    if hasattr(dataset, "skipped"):
        print_log(
            f"{place(dataset)}: {len(dataset)} of {dataset.images} images, {dataset.background} "
            f"without boxes{list_skipped(dataset)}",
            logger="current",
        )


# One image --------------------------------------------------------------------------------------


def steps(pipeline: Any) -> Iterator[Any]:
    """Yield the steps of a pipeline, and of the pipelines within them."""
    if isinstance(pipeline, (list, tuple)):
        for one in pipeline:
            yield from steps(one)
        return
    yield pipeline
    for name in ("transforms", "subroutines"):
        yield from steps(getattr(pipeline, name, ()))


def failed_step(error: Exception, pipeline: Any) -> Any:
    """Find the innermost step of a pipeline that an error has passed."""
    by_code = {type(one).transform.__code__: one for one in steps(pipeline) if is_step(one)}
    passed = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((by_code[code] for code in reversed(passed) if code in by_code), None)


def is_step(one: Any) -> bool:
    """Tell whether a part of a pipeline transforms samples by itself."""
    return isinstance(one, BaseTransform) and hasattr(type(one).transform, "__code__")


def fault(error: Exception, step: Any, info: dict[str, Any]) -> str:
    """Say what went wrong with an image, for a line that begins with its name.

    Args:
        error: raised by the pipeline.
        step: of the pipeline, that it passed.
        info: of the image, as the data set has it.
    """
    mask = f"its mask {info.get('seg_map_path')}"
    maps = isinstance(step, LoadAnnotations)
    if isinstance(error, DataError):  # of `files.WholeImages` or `CheckSample`
        return f"{mask}: {error}" if maps else str(error)
    undecoded = "cannot be decoded: truncated, damaged or of an unknown format"
    if isinstance(step, LoadImageFromFile):
        return f"the image {undecoded} ({describe(error)})"
    if maps and "gt_seg_map" not in info and isinstance(error, AttributeError):
        return f"{mask} {undecoded}"  # there is no image whose shape could be asked for
    name = type(step).__name__ if step is not None else "the pipeline"
    return f"{name}{size_of(info)} failed with {describe(error)}"


def size_of(info: dict[str, Any]) -> str:
    """Say of what size an image is, as far as its file tells."""
    try:
        with Image.open(info["img_path"]) as image:
            return f" of an image of {image.width} x {image.height} pixels"
    except (KeyError, OSError, TypeError):
        return ""


def add_checks(pipeline: Any, check: CheckSample) -> bool:
    """Have what a pipeline loads read from whole files, and checked after each step that loads.

    Returns:
        Whether a step replaces images that it cannot read.
    """
    replaces = False
    if isinstance(pipeline, list):
        for i in reversed(range(len(pipeline))):
            replaces |= add_checks(pipeline[i], check)
            if isinstance(pipeline[i], LOADING):
                pipeline.insert(i + 1, check)
        return replaces
    if isinstance(pipeline, LOADING):
        read_whole(pipeline)
        replaces = bool(getattr(pipeline, "ignore_empty", False))
        if isinstance(pipeline, LoadImageFromFile):
            pipeline.ignore_empty = False  # errors come to `Guarded.replace_or_raise`
        return replaces
    for name in ("transforms", "subroutines"):
        replaces |= add_checks(getattr(pipeline, name, []), check)
    return replaces


def read_whole(step: Any) -> None:
    """Have a step that loads read local files whole; those of another store are left to it."""
    named = step.backend_args or getattr(step, "file_client_args", None) or dict(backend="local")
    if named.get("backend") in ("local", "disk"):
        step.backend_args, step.file_client_args = dict(backend=IMAGES), None


class CheckSample(BaseTransform):
    """Compare what was loaded of an image with what its annotations say.

    Args:
        dataset: whose images these are.
    """

    def __init__(self, dataset: Any) -> None:
        # mmseg's labels index the classes; other maps have meanings of their own.
        self.classes = None
        if hasattr(dataset, "reduce_zero_label"):
            self.classes = len(dataset.metainfo.get("classes") or ()) or None
        self.ignored = getattr(dataset, "ignore_index", 255)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Check sizes and labels.

        Raises:
            DataError: they do not fit; the message goes on after the image's name.
        """
        if "ori_shape" not in results:
            return results
        height, width = results["ori_shape"][:2]
        said = results.get("height") or height, results.get("width") or width
        if said != (height, width):
            raise DataError(
                f"the image is read as {width} x {height} pixels (rotated as its EXIF says), and "
                f"its annotations are for {said[1]} x {said[0]}"
            )
        if "gt_seg_map" in results:
            self.check_map(results["gt_seg_map"], (height, width), str(results["seg_map_path"]))
        return results

    def check_map(self, labels: np.ndarray, size: tuple[int, int], path: str) -> None:
        """Check a map of classes.

        Args:
            labels: as the host has read them.
            size: (height, width) of the image.
            path: of the map.
        """
        if labels.shape != size:
            raise DataError(
                f"its mask {path} is read with the shape {labels.shape}; expected {size} as the "
                "image, with one class per pixel"
            )
        if self.classes is None:
            return
        wrong = labels[(labels >= self.classes) & (labels != self.ignored)]
        if wrong.size:
            raise DataError(
                f"its mask {path} has the label {wrong[0]} in {wrong.size} pixels; expected 0 to "
                f"{self.classes - 1}, or {self.ignored} for pixels to ignore"
            )
        if os.path.isfile(path) and (largest := largest_label(path)) > 255:
            raise DataError(f"its mask {path} has the label {largest}; mmseg reads 8 bits of it")


def largest_label(path: str) -> int:
    """Return the largest label in a mask of more than 8 bits; others are not read."""
    with Image.open(path) as mask:
        return int(np.asarray(mask).max()) if mask.mode[0] in "IF" else 0
