"""Give every part of a model that counts classes the number that a data set has.

What the config says is set in the config; what a head only has by default is found in the built
model, and then set in the config, too.
"""

from __future__ import annotations

from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from ..data.layout import Layout
from ..engine.agreement.classes import has_other_classes
from ..engine.builds import parts_of
from ..engine.config import model_of
from ..engine.harden import last_name
from ..engine.quiet import quiet
from ..errors import UserError, describe
from .changes import Changes, is_list

DETECTORS = ("bbox_head", "roi_head", "mask_head", "panoptic_head")
COUNTS = ("num_classes", "num_things_classes")
NOT_OF_THE_DATA = ("rpn_head",)  # tells objects from background
EDGES = "STDCHead"  # tells edges from the rest
DEPTH = 4  # of parts within parts that count classes, at most


def task_of(model: ConfigDict) -> str:
    """Name the task of a model as a `Layout` does.

    Raises:
        UserError: it is no detector, segmentor or classifier.
    """
    if last_name(model.get("type")) == "ImageClassifier":
        return "classification"
    if "decode_head" in model:
        return "segmentation"
    if any(key in model for key in DETECTORS):
        return "detection"
    inner = model.get("detector")
    hint = f"; take the config of its detector {inner.get('type')} by itself" if inner else ""
    raise UserError(f"model {model.get('type')} is no detector, segmentor or classifier{hint}")


def refuse_model(model: ConfigDict, layout: Layout) -> None:
    """Raise UserError where a model cannot learn the classes of a data set."""
    task, kind = task_of(model), model.get("type")
    if task != layout.task:
        raise UserError(
            f"{layout.root} holds data for {layout.task} ({layout.kind}), and model {kind} is for "
            f"{task}; take a config for {layout.task}"
        )
    if task == "classification" and not model.get("head"):
        raise UserError(f"model {kind} has no head to classify with")
    if "language_model" in model or "text_encoder" in model:
        raise UserError(f"model {kind} reads the names of the classes as text; take one without")
    stuff = max(part.get("num_stuff_classes", 0) for _, part in parts_of(model, "model"))
    if stuff:
        raise UserError(
            f"model {kind} is panoptic, with {stuff} classes of stuff; take a config for instances"
        )
    if task == "segmentation" and len(layout.classes) < 2:
        raise UserError(
            f"{layout.root} has the one class {layout.classes[0]!r}, so that there is nothing to "
            "tell apart; name the background as a class, too (--classes background,"
            f"{layout.classes[0]})"
        )


def set_classes(change: Changes, layout: Layout) -> None:
    """Set the number of classes, and the label to ignore, in all of a config's model.

    Raises:
        UserError: the model is for another task, has classes of its own, or does not build.
    """
    cfg, count = change.cfg, len(layout.classes)
    refuse_model(cfg.model, layout)
    for key in ("model", "data_preprocessor"):  # MMPretrain's has a place of its own
        set_counts(change, cfg.get(key), f"{key}.", None, count)
    wanted = {"num_classes": count}
    if layout.task == "segmentation":
        ignored = layout.ignore_index
        wanted.update(ignore_index=ignored, ignore_label=ignored)
        if "data_preprocessor" in cfg.model:
            preprocessor = cfg.model.data_preprocessor
            change.set(preprocessor, "model.data_preprocessor.", "seg_pad_val", ignored)
    if layout.task == "classification" and "topk" in cfg.model.head:
        change.set(cfg.model.head, "model.head.", "topk", fit_topk(cfg.model.head.topk, count))
    agree(change, wanted)


def fit_topk(topk: Any, count: int) -> tuple[int, ...]:
    """Leave out each k of a top-k accuracy that says nothing about so few classes."""
    return tuple(k for k in (topk if is_list(topk) else [topk]) if k < count) or (1,)


def set_counts(change: Changes, part: Any, path: str, old: int | None, count: int) -> None:
    """Set the number of classes in a part of a config and all parts within it.

    `old` is the number of classes of the part around it.
    """
    if is_list(part):
        part = dict(enumerate(part))
    if not isinstance(part, dict) or last_name(part.get("type")) == EDGES:
        return
    for key in COUNTS:
        if isinstance(part.get(key), int) and part[key] > 0:
            old = part[key]
            change.set(part, path, key, count)
            if part.get("out_channels") in (1, old) and (old != 2 or count != 2):
                change.set(part, path, "out_channels", count)  # of a segmentor's head
    if is_list(part.get("class_weight")):
        change.set(part, path, "class_weight", fit_weights(list(part["class_weight"]), old, count))
    for key, inner in part.items():
        if key not in NOT_OF_THE_DATA:
            set_counts(change, inner, f"{path}{key}.", old, count)


def fit_weights(weights: list[float], old: int | None, count: int) -> list[float] | None:
    """Give a loss weights for other classes: none, unless only the background had one."""
    alike = len(set(weights[:-1])) == 1 and len(weights) == (old or 0) + 1
    return weights[:1] * count + weights[-1:] if alike else None


# As built ----------------------------------------------------------------------------------------


def agree(change: Changes, wanted: dict[str, int]) -> None:
    """Build the model, and set in the config what its parts have by default and ought not to.

    Raises:
        UserError: it does not build, or a part that has another number stands nowhere in the
            config.
    """
    for _ in range(DEPTH):
        found = disagreeing(build_model(change.cfg), wanted)
        names = [name for name, _, _ in found]
        for name, key, value in found:
            if any(other.startswith(f"{name}.") for other in names):
                continue  # it may take it from the part within it
            part = find(change.cfg.model, name)
            if not isinstance(part, dict):
                raise UserError(f"model.{name} has {key} {value}, which no key of the config sets")
            change.set(part, f"model.{name}.", key, wanted[key])
        if not found:
            return
    raise UserError(f"model.{name}.{key} stays {value}; expected {wanted[key]}, as the data")


def disagreeing(model: nn.Module, wanted: dict[str, int]) -> list[tuple[str, str, int]]:
    """List (name of the module, attribute, value) where a module has another value than wanted."""
    found = []
    for name, module in model.named_modules():
        for key, value in wanted.items():
            given = getattr(module, key, None)
            if not isinstance(given, int) or has_other_classes(name, module):
                continue
            if given not in (-1, value):
                found.append((name, key, given))
    return found


def find(part: Any, name: str) -> Any:
    """Find the part of a config that a module was made of, by the module's name."""
    for key in name.split("."):
        if key.isdigit():  # where several are made of one part, it stands for all
            part = part[int(key)] if is_list(part) else part
        else:
            part = part.get(key) if isinstance(part, dict) else None
    return part


def build_model(cfg: Config) -> nn.Module:
    """Build a config's model with random weights, as a runner would.

    Raises:
        UserError: it does not build.
    """
    model = model_of(cfg)
    model.pop("teacher_ckpt", None)  # which a distilled model loads as it is built
    try:
        with quiet(), DefaultScope.overwrite_default_scope(cfg.default_scope):
            built: nn.Module = MODELS.build(model)
    except Exception as error:  # whatever a stranger's model raises
        raise UserError(f"model {model.get('type')} does not build: {describe(error)}") from error
    return built
