"""Watch a model and its batch, to say what failed, with which images and what to set."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.structures import BaseDataElement
from torch import nn

from ..errors import DataError, UserError, describe
from ..hire_mlp import HireMLPNet
from ..registry import HOOKS
from .processes import lost_contact

PACKED = "does each pipeline end in PackDetInputs, PackSegInputs or PackInputs?"


@HOOKS.register_module()
class BatchHook(Hook):
    """Say which batch an iteration was at when it failed."""

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self.batch: Any = None  # while the model works on it
        self.runner: Any = None  # from the beginning of its run
        self.in_model = False  # where the error was raised

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
            self.in_model = True
            self.runner.logger.error(self.message("the error that follows"))

    def message(self, fault: str) -> str:
        """Write the line of a failure: the fault, what to set if that is known, the images."""
        place = "the model failed" if self.in_model else "the iteration failed"
        hints = [*other_channels(self.runner.model), *lone_value(fault)]
        hints += [PACKED] if fault == "KeyError: 'inputs'" else []
        line = "; ".join([f"{place} with {fault}", *hints])
        return f"{line}; the batch was {some([*samples(self.batch)])}"

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.batch, self.in_model = data_batch, False

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
        if hook is not None and hook.batch is None and in_collation(error):
            raise DataError(f"samples cannot be put into a batch: {fault}; {PACKED}") from error
        if hook is None or hook.batch is None:
            raise
        runner.logger.error(traceback.format_exc())
        raise DataError(hook.message(fault)) from error


def in_collation(error: Exception) -> bool:
    """Tell whether an error was raised where samples become a batch, in a worker, too."""
    frames = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
    return "pseudo_collate" in [*frames, *re.findall(r", in (\w+)\n", str(error))]


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model within wrappers for several processes."""
    inner: Any = model
    while is_model_wrapper(inner):
        inner = inner.module
    return inner


def tested(model: nn.Module) -> nn.Module:
    """Return the model within such wrappers and within those for test-time augmentation."""
    inner: Any = unwrapped(model)
    while isinstance(inner, BaseTTAModel):
        inner = unwrapped(inner.module)
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


def lone_value(fault: str) -> Iterator[str]:
    """Yield what to set where BatchNorm had a single value of a channel."""
    if "more than 1 value per channel" in fault:
        yield (
            "a batch of one image with a map of 1 x 1 pixel leaves BatchNorm nothing to compare: "
            "set train_dataloader.batch_size to 2 or more and, for the last batch, "
            "train_dataloader.drop_last=True"
        )


def samples(batch: Any) -> Iterator[tuple[str, str]]:
    """Yield (image file, width x height in pixels as the model gets it) of a batch's samples."""
    if isinstance(batch, BaseDataElement):
        height, width = batch.get("img_shape", ("?", "?"))[:2]
        yield batch.get("img_path", "an image without img_path in meta_keys"), f"{width} x {height}"
    elif isinstance(batch, (dict, list, tuple)):
        for part in batch.values() if isinstance(batch, dict) else batch:
            yield from samples(part)


def some(images: list[tuple[str, str]], most: int = 2) -> str:
    """Name the first of some images with their sizes, and count the others."""
    line = ", ".join(f"{path} ({size})" for path, size in images[:most])
    more = len(images) - most
    return f"{line} and {more} more" if more > 0 else line or "without images that have a name"
