"""Stop training where its loss or its weights are no longer numbers, before anything is spoilt."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import UserError
from ..registry import HOOKS
from .batches import samples, some, unwrapped
from .config import read_note


@HOOKS.register_module()
class FiniteHook(Hook):
    """Stop training on a loss, a gradient or a weight that is NaN or infinite.

    The check stands right before the optimizer's step (torch's own hook for it): no weight has seen
    the loss yet, and the one number that the check waits for is there by then. (mmengine waits for
    each iteration's losses, to log them, and for the gradients' norm, to clip them.) All processes
    of a run stop together. Under a gradient scaler infinite gradients are part of the game: the
    scaler takes no step with them, and the loss alone counts, as soon as the iteration is over. So
    it is under DeepSpeed, whose optimizers have no such hook.
    """

    priority = "VERY_HIGH"  # before an iteration's figures, average and checkpoint are written

    def __init__(self) -> None:
        self.loss = torch.zeros(())
        self.batch: Any = None
        self.checked = False  # this iteration

    def __deepcopy__(self, memo: Any) -> FiniteHook:
        return self  # in copies of the model, such as an average's, too

    def before_train(self, runner: Any) -> None:
        unwrapped(runner.model).register_forward_hook(self.remember)
        wrapped = runner.optim_wrapper
        for wrapper in wrapped.values() if isinstance(wrapped, OptimWrapperDict) else [wrapped]:
            if isinstance(wrapper.optimizer, Optimizer) and not hasattr(wrapper, "loss_scaler"):
                wrapper.optimizer.register_step_pre_hook(partial(self.check_step, runner))

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.batch, self.loss, self.checked = data_batch, torch.zeros(()), False

    def remember(self, model: nn.Module, inputs: Any, outputs: Any) -> None:
        """Keep the loss of a forward pass in training, as `BaseModel.parse_losses` sums it up."""
        if model.training and isinstance(outputs, dict):
            self.loss = total([value for key, value in outputs.items() if "loss" in key])

    def check_step(self, runner: Any, optimizer: Optimizer, *_: Any) -> None:
        """Look at the loss, and at the gradients that an optimizer is about to follow."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        largest = nn.utils.get_total_norm(gradients, norm_type=float("inf"))
        self.check(runner, self.loss.isfinite() & largest.isfinite())

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if not self.checked:  # no step was taken, because of a scaler, or to accumulate gradients
            self.check(runner, self.loss.isfinite())

    def check(self, runner: Any, finite: Tensor) -> None:
        """Stop all processes by a UserError if one has found something that is not finite."""
        self.checked = True
        stop = (~finite).int()
        all_reduce(stop, "max")
        if not stop:
            return
        loss = float(self.loss)
        from_all = all_gather_object((loss, [*samples(self.batch)]))
        bad = [pair for pair in from_all if not math.isfinite(pair[0])]
        found = f"a gradient is NaN or Inf (the loss is {loss})"
        if bad:
            found = f"the loss is {bad[0][0]}"
        images = some([image for _, images in bad or from_all for image in images])
        rate = next(iter(runner.optim_wrapper.get_lr().values()))[0]
        raise UserError(
            f"iteration {runner.iter + 1}: {found}, with the images {images} and the learning rate "
            f"{rate:.3g}; {last_checkpoint(runner)}"
        )


@HOOKS.register_module()
class FiniteCheckpointHook(Hook):
    """Refuse to write weights that are not numbers."""

    priority = "LOWEST"  # sees a checkpoint as it is written, averages swapped in

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        weights = dict(unwrapped(runner.model).named_parameters())
        for part in ("state_dict", "ema_state_dict"):
            for name, value in checkpoint.get(part, {}).items():
                # A buffer may be infinite, as masks of attention are.
                is_weight = name.removeprefix("module.") in weights
                if not (value.isfinite() if is_weight else ~value.isnan()).all():
                    raise UserError(
                        f"iteration {runner.iter + 1}: {name} is NaN or Inf, and was not saved; "
                        f"{last_checkpoint(runner)}"
                    )


def total(losses: Any) -> Tensor:
    """Add up losses, in lists or not, to one number, which stays on its device."""
    if isinstance(losses, Tensor):
        return losses.detach().mean().float()
    return sum(map(total, losses), torch.zeros(()))


def last_checkpoint(runner: Any) -> str:
    """Say from where a training can go on."""
    noted = read_note(runner.work_dir)
    return f"the last checkpoint is {noted}" if noted else "no checkpoint was saved yet"
