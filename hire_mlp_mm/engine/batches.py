"""Watch a model and its batch: name the images on which it fails, and the classes that it lacks."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.structures import BaseDataElement
from torch import nn

from ..errors import DataError, UserError, describe
from ..hire_mlp import HireMLPNet
from ..registry import HOOKS
from .processes import lost_contact


@HOOKS.register_module()
class BatchHook(Hook):
    """Name the images of a batch on which a model fails, in the log."""

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self.batch: Any = None  # while the model works on it
        self.runner: Any = None  # from the beginning of its run

    def __deepcopy__(self, memo: Any) -> BatchHook:
        return self  # in copies of the model, such as an average's, too

    def before_run(self, runner: Any) -> None:
        if self.runner is None:
            self.runner = runner
            # Where the model raises an error, the hook is called without outputs.
            unwrapped(runner.model).register_forward_hook(self.log_failure, always_call=True)

    def log_failure(self, model: nn.Module, inputs: Any, outputs: Any) -> None:
        """Write into the log on which images a forward pass has failed."""
        if outputs is None and self.batch is not None:
            self.runner.logger.error(self.message("with the error that follows"))

    def message(self, error: str) -> str:
        """Write the line that names the images, and what may be wrong with the model."""
        images = [f"{path} ({size})" for path, size in samples(self.batch)]
        line = f"the model failed on {', '.join(images)}: {error}"
        return "; ".join([line, *other_channels(self.runner.model)])

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.batch = data_batch

    before_val_iter = before_test_iter = before_train_iter

    def after_train_iter(self, *_: Any, **__: Any) -> None:
        self.batch = None

    after_val_iter = after_test_iter = after_train_iter


@contextmanager
def one_line_errors(runner: Any = None) -> Iterator[None]:
    """Turn an error into a line for people, while a runner is built (without one) or runs."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        fault = describe(error)
        if lost_contact(error):
            raise UserError(
                f"another process of this run has ended, see the logs of all: {fault}"
            ) from error
        hooks = () if runner is None else runner.hooks
        hook = next((hook for hook in hooks if isinstance(hook, BatchHook)), None)
        # Some parts are built after the runner, before the run begins.
        if runner is None or (hook is not None and hook.runner is None):
            traceback.print_exc()  # the class that refuses its config may be at fault
            raise UserError(f"what the config describes cannot be built: {fault}") from error
        if hook is None or hook.batch is None:
            raise
        runner.logger.error(traceback.format_exc())
        raise DataError(hook.message(fault)) from error


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model within wrappers for several processes."""
    inner: Any = model
    while is_model_wrapper(inner):
        inner = inner.module
    return inner


def other_channels(model: nn.Module) -> Iterator[str]:
    """Yield a line for each neck or head that expects other channels than its HireMLP gives."""
    # Only of a model that has failed: some necks and heads read fewer maps than they get, and work.
    for path, part in model.named_modules():
        backbone = getattr(part, "backbone", None)
        if not isinstance(backbone, HireMLPNet):
            continue
        name = "neck" if getattr(part, "neck", None) is not None else "decode_head"
        reader = getattr(part, name, None)
        expected = getattr(reader, "in_channels", None)
        if expected is None or getattr(reader, "input_transform", None) == "resize_concat":
            continue
        expected = [*expected] if isinstance(expected, (list, tuple)) else [expected]
        index = getattr(reader, "in_index", range(len(backbone.out_channels)))
        read = [index] if isinstance(index, int) else index
        given = [backbone.out_channels[i] for i in read if i < len(backbone.out_channels)]
        if expected != given:
            key = ".".join(filter(None, ("model", path, name)))
            yield f"the backbone gives it {given} channels: set {key}.in_channels, now {expected}"


def samples(batch: Any) -> Iterator[tuple[str, str]]:
    """Yield (image file, width x height in pixels as the model gets it) of a batch's samples."""
    if isinstance(batch, BaseDataElement):
        height, width = batch.get("img_shape", ("?", "?"))[:2]
        yield batch.get("img_path", "an image without img_path in meta_keys"), f"{width} x {height}"
    elif isinstance(batch, (dict, list, tuple)):
        for part in batch.values() if isinstance(batch, dict) else batch:
            yield from samples(part)


@HOOKS.register_module()
class ClassesHook(Hook):
    """Stop a run whose data have labels that the model has no outputs for."""

    def before_train(self, runner: Any) -> None:
        for line in check_classes(runner.model, runner.train_dataloader.dataset)[:1]:
            runner.logger.warning(line)

    def before_val(self, runner: Any) -> None:
        check_classes(runner.model, runner.val_dataloader.dataset)

    def before_test(self, runner: Any) -> None:
        check_classes(runner.model, runner.test_dataloader.dataset)


def check_classes(model: nn.Module, dataset: Any) -> list[str]:
    """Raise DataError where a head has fewer classes than the data; list heads that have more.

    mmdet takes a label beyond a head's classes for the background, mmseg leaves it out of the
    figures.
    """
    metainfo = getattr(dataset, "metainfo", {})
    classes = len(metainfo.get("classes") or ())
    if "stuff_classes" in metainfo or not classes:  # things and stuff have heads of their own
        return []
    lines = []
    for path, head in model.named_modules():
        number = getattr(head, "num_classes", None)
        # A backbone without a classifier has -1.
        if not isinstance(number, int) or number <= 0:
            continue
        # A region proposal network has one class, the object, and STDCHead two, of boundaries.
        if "rpn" in path or type(head).__name__ == "STDCHead":
            continue
        line = (
            f"{path} ({type(head).__name__}) has num_classes={number}, and "
            f"{type(dataset).__name__} {classes} classes"
        )
        if number < classes:
            raise DataError(f"{line}; set either in the config")
        if number > classes:
            lines.append(f"{line}: set it to {classes} in every head, unless that is meant")
    return lines
