"""Watch a batch and the model that gets it: whose images it fails on, and classes it lacks."""

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
        self.batch: Any = None  # that the model has at hand
        self.runner: Any = None

    def __deepcopy__(self, memo: Any) -> BatchHook:
        return self  # of a copy of the model, such as an average's, too

    def before_run(self, runner: Any) -> None:
        if self.runner is not None:
            return
        self.runner = runner
        # Called with no outputs where the model has raised an error, which goes on its way.
        unwrapped(runner.model).register_forward_hook(self.look, always_call=True)

    def look(self, model: nn.Module, inputs: Any, outputs: Any) -> None:
        """Write into the log which images a forward pass has failed on."""
        if outputs is None and self.batch is not None:
            self.runner.logger.error(self.message("with the error that follows"))

    def message(self, error: str) -> str:
        """Tell on which images a model failed, and what may be wrong with the model."""
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
def batch_errors(runner: Any) -> Iterator[None]:
    """Turn the error of a model that fails on a batch into a line that names the images.

    Raises:
        DataError: in place of the error, which goes into the log, as it may be the model's fault.
        UserError: it is another process of the run that is gone, or a class refuses what the
            config has for it.
    """
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        if lost_contact(error):
            raise UserError(
                f"another process of this run has ended, see the logs of all: {describe(error)}"
            ) from error
        hook = next((hook for hook in runner.hooks if isinstance(hook, BatchHook)), None)
        if hook is not None and hook.runner is None:  # the run has not begun
            traceback.print_exc()
            raise cannot_be_built(error) from error
        if hook is None or hook.batch is None:
            raise
        runner.logger.error(traceback.format_exc())
        raise DataError(hook.message(describe(error))) from error


def cannot_be_built(error: Exception) -> UserError:
    """Make the error of a config whose parts cannot be built; the class may be at fault."""
    return UserError(f"what the config describes cannot be built: {describe(error)}")


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model within wrappers for several processes."""
    inner: Any = model
    while is_model_wrapper(inner):
        inner = inner.module
    return inner


def other_channels(model: nn.Module) -> Iterator[str]:
    """Yield a line for each neck or head made for other maps than those of the HireMLP before it.

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


def samples(batch: Any) -> Iterator[tuple[str, str]]:
    """Yield (image file, width x height in pixels as the model gets it) of a batch's samples."""
    if isinstance(batch, BaseDataElement):
        height, width = batch.get("img_shape", ("?", "?"))[:2]
        yield batch.get("img_path", "an image without img_path in meta_keys"), f"{width} x {height}"
    elif isinstance(batch, (dict, list, tuple)):
        for one in batch.values() if isinstance(batch, dict) else batch:
            yield from samples(one)


@HOOKS.register_module()
class ClassesHook(Hook):
    """Stop a run whose data have labels that the model has no outputs for."""

    def before_train(self, runner: Any) -> None:
        check_classes(runner.model, runner.train_dataloader.dataset)
        for line in list(spare_classes(runner.model, runner.train_dataloader.dataset))[:1]:
            runner.logger.warning(line)

    def before_val(self, runner: Any) -> None:
        check_classes(runner.model, runner.val_dataloader.dataset)

    def before_test(self, runner: Any) -> None:
        check_classes(runner.model, runner.test_dataloader.dataset)


def check_classes(model: nn.Module, dataset: Any) -> None:
    """Raise DataError where a head has fewer classes than the data.

    mmdet takes a label too many for the background, mmseg leaves it out of the figures.
    """
    for path, module, number, classes in numbers_of_classes(model, dataset):
        if number < classes:
            raise DataError(
                f"{path} ({type(module).__name__}) has num_classes={number}, and "
                f"{type(dataset).__name__} {classes} classes; set either in the config"
            )


def spare_classes(model: nn.Module, dataset: Any) -> Iterator[str]:
    """Yield a line for each head with more classes than the data, as a forgotten one has."""
    for path, module, number, classes in numbers_of_classes(model, dataset):
        if number > classes:
            yield (
                f"{path} ({type(module).__name__}) has num_classes={number}, and "
                f"{type(dataset).__name__} {classes} classes: set it to {classes} in every head, "
                "unless that is meant"
            )


def numbers_of_classes(model: nn.Module, dataset: Any) -> Iterator[tuple[str, nn.Module, int, int]]:
    """Yield (path, head, its number of classes, the data's) of each head that has classes."""
    metainfo = getattr(dataset, "metainfo", {})
    classes = len(metainfo.get("classes") or ())
    if "stuff_classes" in metainfo or not classes:  # things and stuff have heads of their own
        return
    for path, module in model.named_modules():
        number = getattr(module, "num_classes", None)
        # A region proposal network has one class, the object, and STDCHead two, of boundaries;
        # a backbone without a classifier has -1.
        if "rpn" in path or type(module).__name__ == "STDCHead":
            continue
        if isinstance(number, int) and number > 0:
            yield path, module, number, classes
