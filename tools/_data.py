"""Guards between a run and its data: a file that is wrong is named, and what is skipped is counted.

OpenMMLab's data sets drop what they cannot use without a word, and some of what they do not drop
makes a wrong figure: a JPEG that ends early is grey from there on (OpenCV before 4.11), a mask of
another size is reshaped, a category list in another order gives names to the wrong labels.
"""

from __future__ import annotations

import functools
import math
import os
import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from logging import WARNING
from types import FrameType
from typing import Any

import mmcv
import numpy as np
from _common import USER_ERRORS, UserError, describe
from mmcv.transforms import BaseTransform, LoadAnnotations, LoadImageFromFile
from mmengine.dataset import BaseDataset
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from PIL import Image
from torch import distributed as dist
from torch import nn
from torch.utils.data import DataLoader

from hire_mlp_mm.hire_mlp import HireMLPNet

COCO_LISTS = {"images": ("id", "file_name", "height", "width"), "categories": ("id", "name")}
COCO_ANNOTATION = ("id", "image_id", "category_id", "bbox", "area")


class DataError(UserError):
    """A file of a data set that cannot be used; the message names it."""

    shared = False  # each process has images of its own

    def __init__(self, message: str) -> None:
        # A data loader's worker sends its traceback before the message.
        line = message.strip().splitlines()[-1]
        super().__init__(line.removeprefix(f"{__name__}.{type(self).__name__}: "))


def guard_data(runner: Runner) -> None:
    """Have the data that a runner will build checked and counted."""
    if runner.cfg.get("default_scope") == "mmdet":
        check_coco_files()
    runner.build_dataloader = functools.partial(guarded_loader, runner.build_dataloader)
    runner.build_evaluator = functools.partial(guarded_evaluator, runner.build_evaluator)
    runner.register_hook(ClassesHook())


def guarded_evaluator(build: Callable[..., Evaluator], *args: Any) -> Evaluator:
    """Build an evaluator; an annotation file that it cannot read is a DataError."""
    with annotation_errors():
        return build(*args)


def guarded_loader(build: Callable[..., DataLoader], *args: Any, **kwargs: Any) -> DataLoader:
    """Build a data loader whose data sets are checked.

    Raises:
        DataError: an annotation file that cannot be used, or no images.
    """
    with annotation_errors():
        loader = build(*args, **kwargs)
    for dataset in data_sets(loader.dataset):
        if len(dataset) == 0:
            raise DataError(no_images(dataset))
        report(dataset)
        dataset.prepare_data = Sample(dataset)
        for transform in transforms(dataset.pipeline):
            if isinstance(transform, (LoadImageFromFile, LoadAnnotations)):
                transform.transform = Loaded(transform, dataset)
    return loader


def data_sets(dataset: Any) -> Iterator[BaseDataset]:
    """The data sets that read files, within concatenated, repeated and mixed ones."""
    if isinstance(dataset, BaseDataset):
        yield dataset
    inner = getattr(dataset, "datasets", None) or [
        # The latter is mmengine's for num_batch_per_epoch.
        getattr(dataset, "dataset", None) or vars(dataset).get("_dataset")
    ]
    for one in inner if not isinstance(dataset, BaseDataset) else ():
        if one is not None:
            yield from data_sets(one)


def transforms(pipeline: Any) -> Iterator[Any]:
    """The steps of a pipeline, and of the pipelines within them."""
    if isinstance(pipeline, (list, tuple)):
        for one in pipeline:
            yield from transforms(one)
        return
    yield pipeline
    for name in ("transforms", "subroutines"):
        yield from transforms(getattr(pipeline, name, ()))


def place(dataset: BaseDataset) -> str:
    """Where a data set comes from: its annotation file or else its folders."""
    prefixes: Any = dataset.data_prefix
    folders = prefixes.values() if isinstance(prefixes, dict) else [prefixes]
    return dataset.ann_file or " and ".join(str(one) for one in folders if one)


def no_images(dataset: BaseDataset) -> str:
    return f"{place(dataset)}: no images for {type(dataset).__name__}{list_skipped(dataset)}"


# One image ---------------------------------------------------------------------------------------

host_decode = mmcv.imfrombytes
JPEG, JPEG_END = b"\xff\xd8", b"\xff\xd9"
# Within a scan FF stands before 00, and before D0 to D7 where it starts anew.
JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")


def decode_whole(content: bytes, *args: Any, **kwargs: Any) -> np.ndarray:
    """`mmcv.imfrombytes` for whole files only.

    Raises:
        DataError: says what is wrong; the caller knows the file.
    """
    content = bytes(content)
    if not content:
        raise DataError("the file is empty")
    # Most files end there; one that is cut off at such bytes of its header has nothing to decode.
    if content.startswith(JPEG) and not (content.endswith(JPEG_END) or has_end(content)):
        raise DataError("the JPEG is truncated")
    try:
        image = host_decode(content, *args, **kwargs)
    except Exception as error:  # the decoders' own
        raise DataError(f"the image cannot be decoded ({describe(error)})") from error
    if image is None:
        raise DataError("the image cannot be decoded: truncated, damaged or of an unknown format")
    return image


# What OpenMMLab's transforms call; here, as workers that do not start as forks import this file.
mmcv.imfrombytes = decode_whole


def has_end(jpeg: bytes) -> bool:
    """Whether a JPEG's segments, thumbnails left aside, go on to its end marker."""
    position = len(JPEG)
    while marker := JPEG_MARKER.search(jpeg, position):
        if marker[1] == b"\xd9":
            return True
        length = jpeg[marker.end() : marker.end() + 2]
        position = marker.end() + int.from_bytes(length, "big")
    return False


class Sample:
    """`prepare_data` of a data set, with errors that name the file.

    Args:
        dataset: what it belongs to.
    """

    def __init__(self, dataset: BaseDataset) -> None:
        self.dataset = dataset
        self.unused = 0  # in a row

    def __call__(self, index: int) -> Any:
        try:
            sample = type(self.dataset).prepare_data(self.dataset, index)
        except FileNotFoundError as error:
            raise DataError(f"{error.filename or self.path(index)} not found") from error
        except Exception as error:
            raise DataError(f"{self.path(index)}: {fault(error)}") from error
        self.unused = 0 if sample is not None else self.unused + 1
        if self.unused > self.dataset.max_refetch:
            raise DataError(
                f"{self.path(index)}: the pipeline has refused {self.unused} images in a row"
            )
        return sample

    def path(self, index: int) -> str:
        info = self.dataset.get_data_info(index)
        return str(info.get("img_path", f"image {index} of {place(self.dataset)}"))


def fault(error: Exception) -> str:
    """What went wrong with an image, for a line that begins with its name."""
    if isinstance(error, DataError):
        return str(error)
    step = ""
    for frame in frames(error):
        owner, results = frame.f_locals.get("self"), frame.f_locals.get("results")
        if isinstance(owner, BaseTransform) and isinstance(results, dict):
            step = type(owner).__name__
            if "ori_shape" in results:
                height, width = results["ori_shape"][:2]
                step += f" of an image of {width} x {height} pixels"
    return f"{step or 'the pipeline'} failed with {describe(error)}"


def frames(error: Exception) -> Iterator[FrameType]:
    """Where an error passed, from the outermost call to the innermost."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        yield frame


class Loaded:
    """`transform` of a step that loads, its result checked against the annotations.

    Args:
        transform: the step.
        dataset: whose images it loads.
    """

    def __init__(self, transform: BaseTransform, dataset: BaseDataset) -> None:
        self.transform = transform
        self.maps = isinstance(transform, LoadAnnotations)
        # The host's `ignore_empty` trains on another image in place of one that cannot be read.
        self.replaces = getattr(transform, "ignore_empty", False) and not dataset.test_mode
        self.replaced = 0
        if not self.maps:
            transform.ignore_empty = False  # errors come here
        # mmseg's labels index the classes; other maps have meanings of their own.
        self.classes = None
        if hasattr(dataset, "reduce_zero_label"):
            self.classes = len(dataset.metainfo.get("classes") or ()) or None
        self.ignored = getattr(dataset, "ignore_index", 255)

    def __call__(self, results: dict) -> Any:
        path = results.get("seg_map_path")
        try:
            results = type(self.transform).transform(self.transform, results)
        except (DataError, OSError) as error:
            if self.replaces:
                self.replaced += 1
                print_log(
                    f"{results['img_path']}: {error}; replaced by another image "
                    f"({self.replaced} times so far, in this process)",
                    logger="current",
                    level=WARNING,
                )
                return None
            if self.maps and isinstance(error, DataError):
                raise DataError(f"its mask {path}: {error}") from error
            raise
        if results is None or "ori_shape" not in results:
            return results
        height, width = results["ori_shape"][:2]
        said = results.get("height") or height, results.get("width") or width
        if said != (height, width):
            raise DataError(
                f"the image is read as {width} x {height} pixels (rotated as its EXIF says), and "
                f"its annotations are for {said[1]} x {said[0]}"
            )
        if self.maps and "gt_seg_map" in results:
            self.check_map(results["gt_seg_map"], (height, width), path)
        return results

    def check_map(self, labels: np.ndarray, size: tuple[int, int], path: str) -> None:
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
    """The largest label in a mask of more than 8 bits; others are not read."""
    with Image.open(path) as mask:
        return int(np.max(mask)) if mask.mode[0] in "IF" else 0


# Annotation files --------------------------------------------------------------------------------


@contextmanager
def annotation_errors() -> Iterator[None]:
    """Name the annotation file that a data set or an evaluator cannot read."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        for frame in frames(error):
            owner = frame.f_locals.get("self")
            path = frame.f_locals.get("annotation_file")  # of pycocotools
            if isinstance(owner, BaseDataset) and frame.f_code.co_name == "load_data_list":
                path = place(owner)
            if path:
                message = f"annotation file {path} cannot be read: {describe(error)}"
                raise DataError(message) from error
            if frame.f_code.co_name == "_serialize_data" and not owner.data_list:
                raise DataError(no_images(owner)) from error
        raise


def check_coco_files() -> None:
    """Have mmdet's COCO data sets check and count what their files hold."""
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.api_wrappers import COCO

    host_load = CocoDataset.load_data_list
    if hasattr(host_load, "__wrapped__"):
        return

    @functools.wraps(host_load)
    def load_data_list(self: Any) -> list[dict]:
        read: list[Any] = []

        def api(path: str) -> Any:
            read.append(type(self).COCOAPI(path))
            check_coco(read[0].dataset, self)
            return read[0]

        if type(self).COCOAPI is not COCO:  # panoptic files and others hold something else
            return host_load(self)
        self.COCOAPI = api
        data_list = host_load(self)
        del self.COCOAPI
        self.images = len(data_list)
        self.background = sum(not one["instances"] for one in data_list)
        self.skipped = count_skipped(read[0].dataset, self)
        return data_list

    CocoDataset.load_data_list = load_data_list


def check_coco(content: dict, dataset: Any) -> None:
    """Raise DataError where a COCO file would make a wrong figure, or none.

    Annotations of boxes that the data set skips are checked, too, as evaluators use them.
    """
    path = dataset.ann_file
    for key, fields in COCO_LISTS.items():
        check_records(content, path, key, fields)
    check_names(content, path, list(dataset.metainfo["classes"]))
    if "annotations" not in content and not (dataset.filter_cfg or {}).get("filter_empty_gt"):
        return  # images alone, to be predicted or without labels
    check_records(content, path, "annotations", COCO_ANNOTATION)
    sizes = {one["id"]: [one["height"], one["width"]] for one in content["images"]}
    for one in content["annotations"]:
        box = one["bbox"]
        if not (isinstance(box, list) and len(box) == 4 and all(map(is_finite, box))):
            raise DataError(
                f"annotation file {path}: annotation {one['id']} has the box {box}; "
                "expected x, y, width and height"
            )
        mask, size = one.get("segmentation"), sizes.get(one["image_id"])
        if isinstance(mask, dict) and size and list(mask.get("size", ())) != size:
            raise DataError(
                f"annotation file {path}: the mask of annotation {one['id']} has the size "
                f"{mask.get('size')}; expected {size} (height, width) as its image"
            )


def few(names: Iterable[str]) -> str:
    """The first of some names."""
    names = list(names)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def is_finite(number: Any) -> bool:
    return isinstance(number, (int, float)) and math.isfinite(number)


def check_records(content: dict, path: str, key: str, fields: tuple[str, ...]) -> None:
    """Raise DataError unless `content[key]` is a list of records with these fields."""
    records = content.get(key)
    if not isinstance(records, list):
        raise DataError(f"annotation file {path}: expected COCO's format, with a list {key!r}")
    for record in records:
        missing = [name for name in fields if name not in record]
        if missing:
            number = record.get("id", "without id")
            raise DataError(
                f"annotation file {path}: record {number} of {key!r} lacks {', '.join(missing)}"
            )


def check_names(content: dict, path: str, classes: list[str]) -> None:
    """Raise DataError unless the file's categories are the classes, in their order.

    mmdet numbers labels in the file's order and names them in that of the classes.
    """
    names = [one["name"] for one in content["categories"]]
    found = [name for name in names if name in classes]
    if found == classes:
        return
    missing = [name for name in classes if name not in names]
    if missing:
        what = f"has no category {few(missing)}, which the config's classes name"
    else:
        what = f"has the categories {few(found)}; expected the config's {few(classes)}"
    raise DataError(f"annotation file {path} {what} (metainfo.classes, in the file's order)")


def count_skipped(content: dict, dataset: Any) -> Counter[str]:
    """How many boxes of a COCO file a data set leaves out, by reason, in the host's order."""
    skipped: Counter[str] = Counter()
    images = {one["id"]: (one["width"], one["height"]) for one in content["images"]}
    names = {one["id"]: one["name"] for one in content["categories"]}
    used = set(dataset.cat_ids)
    others: Counter[str] = Counter()
    for one in content.get("annotations", ()):
        left, top, width, height = one["bbox"]
        across, down = images.get(one["image_id"], (0, 0))
        if one["image_id"] not in images:
            skipped["of images that the file does not list"] += 1
        elif one.get("ignore", False):
            skipped["marked to be ignored"] += 1
        elif one["area"] <= 0 or width < 1 or height < 1:
            skipped["of zero area or thinner than a pixel"] += 1
        elif min(left + width, across) <= max(left, 0) or min(top + height, down) <= max(top, 0):
            skipped["outside their image"] += 1
        elif one["category_id"] not in used:
            others[str(names.get(one["category_id"], one["category_id"]))] += 1
    if others:
        skipped[f"of categories that are not among the classes ({few(sorted(others))})"] = (
            others.total()
        )
    return skipped


def list_skipped(dataset: Any) -> str:
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


# Batches -----------------------------------------------------------------------------------------


class BatchHook(Hook):
    """Remembers the batch that a model has at hand."""

    priority = "VERY_HIGH"
    batch: Any = None

    def _before_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, **_: Any
    ) -> None:
        self.batch = data_batch

    def _after_iter(self, *_: Any, **__: Any) -> None:
        self.batch = None


@contextmanager
def batch_errors(runner: Runner) -> Iterator[None]:
    """Name the images of a batch on which a model fails, as on one of a size that it cannot take.

    Raises:
        DataError: in place of the error, which goes into the log, as it may be the model's fault.
        UserError: it is another process of the run that is gone.
    """
    hook = BatchHook()
    runner.register_hook(hook)
    try:
        yield
    except (UserError, OSError, *USER_ERRORS):
        raise
    except Exception as error:
        if lost_contact(error):
            raise UserError(
                f"another process of this run has ended, see the logs of all: {describe(error)}"
            ) from error
        if hook.batch is None:
            raise
        runner.logger.error(traceback.format_exc())
        images = [f"{path} ({size})" for path, size in samples(hook.batch)]
        line = f"the model failed on {', '.join(images)}: {describe(error)}"
        raise DataError("; ".join([line, *other_channels(runner.model)])) from error


def other_channels(model: nn.Module) -> Iterator[str]:
    """A line for each neck or head made for other maps than those of the HireMLP before it.

    Of a model that fails: there are readers that take less than they are given, and work.
    """
    for path, part in model.named_modules():
        backbone = getattr(part, "backbone", None)
        if not isinstance(backbone, HireMLPNet):
            continue
        name = "neck" if getattr(part, "neck", None) is not None else "decode_head"
        reader = getattr(part, name, None)
        wanted = getattr(reader, "in_channels", None)
        index = getattr(reader, "in_index", range(len(backbone.out_channels)))
        if getattr(reader, "input_transform", None) == "resize_concat" or wanted is None:
            continue
        wanted = [*wanted] if isinstance(wanted, (list, tuple)) else [wanted]
        read = [index] if isinstance(index, int) else [*index]
        given = [backbone.out_channels[i] for i in read if i < len(backbone.out_channels)]
        if wanted != given:
            where = ".".join(filter(None, ("model", path, name)))
            yield f"the backbone gives it {given} channels: set {where}.in_channels, now {wanted}"


def lost_contact(error: Exception) -> bool:
    """Whether an error is one of torch.distributed; gloo's have no type of their own."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def samples(batch: Any) -> Iterator[tuple[str, str]]:
    """(image file, width x height in pixels as the model gets it) of each sample in a batch."""
    if isinstance(batch, BaseDataElement):
        height, width = batch.get("img_shape", ("?", "?"))[:2]
        yield batch.get("img_path", "an image without img_path in meta_keys"), f"{width} x {height}"
    elif isinstance(batch, (dict, list, tuple)):
        for one in batch.values() if isinstance(batch, dict) else batch:
            yield from samples(one)


# Classes -----------------------------------------------------------------------------------------


class ClassesHook(Hook):
    """Stops a run whose data have labels that the model has no outputs for."""

    def before_train(self, runner: Runner) -> None:
        check_classes(runner.model, runner.train_dataloader.dataset)

    def before_val(self, runner: Runner) -> None:
        check_classes(runner.model, runner.val_dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        check_classes(runner.model, runner.test_dataloader.dataset)


def check_classes(model: nn.Module, dataset: Any) -> None:
    """Raise DataError where a head has fewer classes than the data.

    mmdet takes a label too many for the background, mmseg leaves it out of the figures.
    """
    metainfo = getattr(dataset, "metainfo", {})
    classes = metainfo.get("classes") or ()
    if "stuff_classes" in metainfo:  # panoptic: things and stuff have heads of their own
        return
    for path, module in model.named_modules():
        number = getattr(module, "num_classes", None)
        # A region proposal network has one class, the object, and STDCHead two, of boundaries;
        # a backbone without a classifier has -1.
        if "rpn" in path or type(module).__name__ == "STDCHead":
            continue
        if isinstance(number, int) and 0 < number < len(classes):
            raise DataError(
                f"{path} ({type(module).__name__}) has num_classes={number}, and "
                f"{type(dataset).__name__} {len(classes)} classes; set either in the config"
            )
