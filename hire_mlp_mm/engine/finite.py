"""Training stops where its loss or its weights are no longer numbers, before anything is spoilt."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce
from mmengine.hooks import Hook
from mmengine.optim import BaseOptimWrapper, OptimWrapperDict
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import UserError
from ..registry import HOOKS
from .batches import samples, unwrapped
from .resume import read_note


@HOOKS.register_module()
class FiniteHook(Hook):
    """Stop training on a loss, a gradient or a weight that is NaN or infinite.

    The check stands right before the optimizer's step (torch's own hook for it): no weight has seen
    the loss yet, and the one number that it waits for is there by then. (mmengine waits for each
    iteration's losses, to log them, and for the gradients' norm, to clip them.) All processes of
    a run stop together. Under a gradient scaler infinite gradients are part of the game, and the
    loss alone counts, as soon as the iteration is over; the scaler takes no step with it. So it is
    under DeepSpeed, whose optimizers have no such hook.
    """

    priority = "VERY_HIGH"  # before an iteration's figures, average and checkpoint are written

    def __init__(self) -> None:
        self.losses: dict[str, Tensor] = {}
        self.batch: Any = None
        self.checked = False  # this iteration

    def __deepcopy__(self, memo: Any) -> FiniteHook:
        return self  # of a copy of the model, such as an average's, too

    def before_train(self, runner: Any) -> None:
        unwrapped(runner.model).register_forward_hook(self.remember)
        for wrapper in wrappers(runner.optim_wrapper):
            torchs = isinstance(wrapper.optimizer, Optimizer)
            if torchs and not hasattr(wrapper, "loss_scaler"):
                check = partial(self.check_step, runner)
                wrapper.optimizer.register_step_pre_hook(check)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.batch, self.losses, self.checked = data_batch, {}, False

    def remember(self, model: nn.Module, inputs: Any, outputs: Any) -> None:
        """Keep the losses of a forward pass, as a model of mmengine returns them in training."""
        if model.training and isinstance(outputs, dict):
            self.losses = {k: detached(v) for k, v in outputs.items() if "loss" in k}

    @property
    def loss(self) -> Tensor:
        """Return the sum that is minimised, as `BaseModel.parse_losses` makes it, or else 0."""
        return sum(self.losses.values(), torch.zeros(()))

    def check_step(self, runner: Any, optimizer: Optimizer, *_: Any) -> None:
        """Look at the loss and the gradients that an optimizer is about to follow.

        Raises:
            UserError: names the iteration and the images.
        """
        self.check(runner, self.loss.isfinite() & largest_gradient(optimizer).isfinite())

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Look at the loss where the optimizer's step was left out: by a scaler, or to accumulate.

        Raises:
            UserError: names the iteration and the images.
        """
        if not self.checked:
            self.check(runner, self.loss.isfinite())

    def check(self, runner: Any, finite: Tensor) -> None:
        """Stop all processes of a run if one has come upon something that is not finite.

        Raises:
            UserError: names the iteration and the images.
        """
        self.checked = True
        stop = (~finite).int()
        all_reduce(stop, "max")
        if stop:
            raise UserError(self.message(runner, float(self.loss)))

    def message(self, runner: Any, loss: float) -> str:
        """Tell what happened, in the words of all processes."""
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


@HOOKS.register_module()
class FiniteCheckpointHook(Hook):
    """Refuse to write weights that are not numbers."""

    priority = "LOWEST"  # sees a checkpoint as it is written, averages swapped in

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Look at the weights that are about to be written.

        Raises:
            UserError: names the first such tensor.
        """
        weights = dict(unwrapped(runner.model).named_parameters())
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


def wrappers(optimizers: Any) -> list[BaseOptimWrapper]:
    """Return mmengine's wrapper of each optimizer of a training."""
    return list(optimizers.values()) if isinstance(optimizers, OptimWrapperDict) else [optimizers]


def detached(loss: Any) -> Tensor:
    """Return a loss, or the sum of a list of them, as one number; it stays on its device."""
    parts = loss if isinstance(loss, (list, tuple)) else [loss]
    return sum((part.detach().mean().float() for part in parts), torch.zeros(()))


def kept(runner: Any) -> str:
    """Say where to go on from."""
    noted = read_note(runner.work_dir)
    return f"the last checkpoint is {noted}" if noted else "no checkpoint was saved yet"


def largest_gradient(optimizer: Optimizer) -> Tensor:
    """Return the largest absolute value in all gradients; NaN if there is one."""
    gradients = [
        parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    return nn.utils.get_total_norm(gradients, norm_type=float("inf"))
