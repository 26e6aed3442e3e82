"""Give the images of all pipelines of a config another size, for training, validation and test."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from mmengine.config import ConfigDict

from ..data.layout import SPLITS
from ..engine.builds import parts_of
from ..engine.config import innermost
from ..engine.harden import last_name
from ..errors import UserError
from .changes import Changes, is_list

Size = tuple[int, int]  # width and height in pixels

# By the task: the key of each step that gets the size itself, the first of which says what the
# recipe's is; and of each that is scaled with it.
GIVEN = dict(
    detection={"Resize": "scale", "Pad": "size"},
    segmentation={"RandomCrop": "crop_size", "Pad": "size"},
    classification={"RandomResizedCrop": "scale", "CenterCrop": "crop_size", "Resize": "scale"},
)
SCALED = dict(
    detection={"RandomResize": "scale", "RandomChoiceResize": "scales", "RandomCrop": "crop_size"},
    segmentation={"Resize": "scale", "RandomResize": "scale", "RandomChoiceResize": "scales"},
    classification={"ResizeEdge": "scale"},
)
# Keys that say sizes, in whatever step.
SIZES = ("scale", "scales", "img_scale", "img_scales", "crop_size", "size", "resize_scale")
PIPELINES = ("train_pipeline", "val_pipeline", "test_pipeline")  # that inferencers take
LEAST = 32  # pixels: the stride of the deepest map


def set_size(change: Changes, task: str, size: Size) -> None:
    """Set the size of a config's images: what a detector resizes to, what the others crop.

    Steps that resize to other sizes are scaled in proportion.

    Args:
        change: of the config.
        task: of its model.
        size: width and height in pixels; a classifier's crops are squares.

    Raises:
        UserError: a step of the pipelines or of the model has sizes of its own.
    """
    if task == "classification" and size[0] != size[1]:
        raise UserError(f"--size {size[0]}x{size[1]}: a classifier crops squares; expected one")
    fit_model(change, task, size)
    cfg, others = change.cfg, Changes(change.cfg)
    # A detector's own size is that of its tests.
    keys = [f"{split}_dataloader" for split in ("val", "test", "train")]
    found = [step for key in keys for step in known_steps(cfg[key].dataset, f"{key}.dataset", task)]
    if task == "segmentation" and not found:
        add_resizing(change, size)
        return
    named = next((step[GIVEN[task][kind]] for step, _, kind in found if kind == first(task)), None)
    if named is None:
        raise UserError(f"--size: the pipelines have no {first(task)}; set their sizes by hand")
    old = (named, named) if isinstance(named, int) else (named[0], named[1])
    fit_steps(change, found, task, old, size)
    for key in [key for key in PIPELINES if key in cfg]:
        fit_steps(others, known_steps(cfg[key], key, task), task, old, size)
    if others.changes:
        change.changes.append(f"{', '.join(PIPELINES)}: sizes as in the loaders")


def add_resizing(change: Changes, size: Size) -> None:
    """Let a segmentor's pipelines resize images that they have taken as they are."""
    cfg = change.cfg
    loaders = {f"{split}_dataloader": cfg[f"{split}_dataloader"] for split in SPLITS}
    pipelines = {key: innermost(loader.dataset).pipeline for key, loader in loaders.items()}
    pipelines |= {key: cfg[key] for key in PIPELINES if key in cfg}
    for key, steps in pipelines.items():
        kinds = [last_name(step.get("type")) for step in steps]
        place = kinds.index("LoadAnnotations") if "LoadAnnotations" in kinds else 0
        # A test's mask keeps its size: what is found is given in that.
        place += key.startswith("train") or not place
        steps.insert(place, ConfigDict(type="Resize", scale=size, keep_ratio=True))
        if key.startswith("train"):  # upright images among others make a batch, too
            steps.insert(place + 1, ConfigDict(type="RandomCrop", crop_size=size[::-1]))
    change.changes.append(f"pipelines: resize to {size[0]} x {size[1]}, in the image's own ratio")


def first(task: str) -> str:
    """Name the step that says which size a recipe's images have."""
    return next(iter(GIVEN[task]))


def known_steps(part: Any, path: str, task: str) -> Iterator[tuple[Any, str, str]]:
    """Yield (step, path, kind) of the steps that say sizes; raise UserError at an unknown one."""
    known = GIVEN[task] | SCALED[task]
    for at, step in parts_of(part, path):
        kind = last_name(step.get("type"))
        keys = [key for key in SIZES if key in step]
        if known.get(kind) in keys:
            yield step, f"{at}.", kind
        elif keys or kind == "Resize":
            raise UserError(
                f"--size knows {', '.join(known)}, and {at} ({kind}) has {keys or 'no scale'}; set "
                "the sizes of this config by hand"
            )


def fit_steps(
    change: Changes, steps: Iterable[tuple[Any, str, str]], task: str, old: Size, size: Size
) -> None:
    """Set the new size in steps that get it, and scale the sizes of others in proportion."""
    for step, path, kind in steps:
        key = (GIVEN[task] | SCALED[task])[kind]
        given, value = step[key], size
        if step.get("crop_type") == "absolute_range":  # the least and the most of a side
            value = tuple(scaled(side, old, size) for side in given)
        elif kind in SCALED[task]:
            value = scaled(given, old, size)
        elif kind == "RandomCrop":
            value = size[::-1]  # height first
        square = isinstance(given, int) and is_list(value) and value[0] == value[1]
        change.set(step, path, key, value[0] if square else value)


def scaled(value: Any, old: Size, size: Size) -> Any:
    """Scale a side, a pair of sides, or a list of pairs: longer as longer, shorter as shorter."""
    longer, shorter = max(size) / max(old), min(size) / min(old)
    if not is_list(value):
        return round(value * shorter)
    if any(map(is_list, value)):
        return [scaled(one, old, size) for one in value]
    if value[0] == value[1]:
        return tuple(round(value[0] * side / min(old)) for side in size)
    return tuple(round(side * (longer if side == max(value) else shorter)) for side in value)


def fit_model(change: Changes, task: str, size: Size) -> None:
    """Let a segmentor's batches and windows be of the size, too.

    Raises:
        UserError: another part of the model is made for images of one size.
    """
    model = change.cfg.model
    if task == "segmentation":
        preprocessor = model.get("data_preprocessor") or {}
        if preprocessor.get("size"):
            change.set(preprocessor, "model.data_preprocessor.", "size", size[::-1])
        windows = model.get("test_cfg") or {}
        if windows.get("mode") == "slide":
            change.set(windows, "model.test_cfg.", "crop_size", size[::-1])
            change.set(windows, "model.test_cfg.", "stride", tuple(2 * s // 3 for s in size[::-1]))
    for path, part in parts_of(model.get("data_preprocessor") or {}, "model.data_preprocessor"):
        own = path == "model.data_preprocessor"
        sized = [key for key in part if "size" in key and not key.endswith("divisor")]
        if [key for key in sized if not (own and key == "size")]:
            raise UserError(f"--size: {path} has sizes of its own; set those by hand, too")
    for path, part in parts_of(model, "model"):
        if "img_size" in part:
            raise UserError(f"--size: {path} is made for img_size={part['img_size']}; set it, too")
