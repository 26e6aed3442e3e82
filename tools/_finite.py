"""Training stops where its loss or its weights are no longer numbers, before anything is spoilt."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from _common import UserError
from _data import samples
from _resume import read_note
from mmengine.dist import all_gather_object, all_reduce
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import BaseOptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor


class FiniteHook(Hook):
    """Stops training on a loss, a gradient or a weight that is NaN or infinite.

    The check stands between the backward pass and the optimizer's step: no weight has seen the
    loss yet, and the one number that it waits for is there by then. (mmengine waits for each
    iteration's losses, to log them, and for the gradients' norm, to clip them.) All processes of
    a run stop together. Under a gradient scaler infinite gradients are part of the game, and the
    loss alone counts.
    """

    priority = "LOWEST"  # sees a checkpoint as it is written, averages swapped in

    def before_train(self, runner: Runner) -> None:
        optimizers = runner.optim_wrapper
        each = optimizers.values() if isinstance(optimizers, OptimWrapperDict) else [optimizers]
        for one in each:
            one.backward = functools.partial(self.backward, runner, one, one.backward)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.batch = data_batch

    def backward(
        self,
        runner: Runner,
        optimizer: BaseOptimWrapper,
        backward: Callable[..., None],
        loss: Tensor,
        **kwargs: Any,
    ) -> None:
        """An optimizer wrapper's `backward`, then the check.

        Raises:
            UserError: names the iteration and the images.
        """
        backward(loss, **kwargs)
        finite = loss.detach().isfinite().all()
        if not hasattr(optimizer, "loss_scaler"):
            finite = finite & largest_gradient(optimizer).isfinite()
        stop = (~finite).int()
        all_reduce(stop, "max")
        if stop:
            raise UserError(self.message(runner, float(loss.detach())))

    def message(self, runner: Runner, loss: float) -> str:
        """What happened, in the words of all processes."""
        found = all_gather_object((loss, [path for path, _ in samples(self.batch)]))
        bad = [one for one in found if not math.isfinite(one[0])]
        what = (
            f"the loss is {bad[0][0]}" if bad else f"a gradient is NaN or Inf (the loss is {loss})"
        )
        images = [path for _, paths in bad or found for path in paths]
        rate = next(iter(runner.optim_wrapper.get_lr().values()))[0]
        return (
            f"iteration {runner.iter + 1}: {what}, with the images "
            f"{', '.join(images)} and the learning rate "
            f"{rate:.3g}; {kept(runner)}"
        )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Refuse to write weights that are not numbers.

        Raises:
            UserError: names the first such tensor.
        """
        model = runner.model
        while is_model_wrapper(model):
            model = model.module
        weights = dict(model.named_parameters())
        for part in ("state_dict", "ema_state_dict"):
            for name, value in checkpoint.get(part, {}).items():
                # A buffer may be infinite, as masks of attention are.
                is_weight = name.removeprefix("module.") in weights
                if (value.isfinite() if is_weight else ~value.isnan()).all():
                    continue
                raise UserError(
                    f"iteration {runner.iter + 1}: {name} is NaN or Inf, and was not saved; "
                    f"{kept(runner)}"
                )


def kept(runner: Runner) -> str:
    """The end of a message: where to go on from."""
    noted = read_note(runner.work_dir)
    return f"the last checkpoint is {noted}" if noted else "no checkpoint was saved yet"


def largest_gradient(optimizer: BaseOptimWrapper) -> Tensor:
    """The largest absolute value in all gradients; NaN if there is one."""
    gradients = [
        parameter.grad
        for group in optimizer.optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    return torch.nn.utils.get_total_norm(gradients, norm_type=float("inf"))
