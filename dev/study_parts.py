"""Parts of the study's runs that a config names: ablated networks, memory layout, a clock."""

from __future__ import annotations

import time
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModule
from mmengine.registry import HOOKS, MODELS
from mmengine.runner import Runner
from torch import Tensor

from hire_mlp_mm.hire_mlp import Block, HireMLPNet, HireModule, Mlp, NormLayer


class Ungated(HireModule):
    """Sum the three branches, as version 1 of the paper does; what follows the sum stays."""

    def __init__(self, dim: int, norm_layer: NormLayer, **options: Any) -> None:
        super().__init__(dim, norm_layer, **options)
        del self.reweight

    def gate(self, *branches: Tensor) -> Tensor:
        """Weigh each of three branches (B, C, H, W) by 1."""
        return branches[0].new_ones(3, 1, 1, 1, 1)


class Channelless(HireModule):
    """Mix tokens by the two region branches alone, gated as the three are."""

    def __init__(self, dim: int, norm_layer: NormLayer, **options: Any) -> None:
        super().__init__(dim, norm_layer, **options)
        del self.channel
        self.reweight = Mlp(dim, dim // 4, dim * 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        height, width = self.height(x), self.width(x)
        mean = (height + width).mean((2, 3), keepdim=True)
        # (B, 2C, 1, 1) -> (B, C, 2, 1, 1): channel outer, branch inner, as `HireModule.gate`
        weights = self.reweight(mean).unflatten(1, (-1, 2)).softmax(2)
        return self.proj(height * weights[:, :, 0] + width * weights[:, :, 1])


MIXERS = {"gate": Ungated, "channel": Channelless}


@MODELS.register_module()
class AblatedHireMLP(HireMLPNet, BaseModule):
    """Hire-MLP without a part of its token mixers.

    Args:
        without: `gate` or `channel`.
        options: of `HireMLPNet`.
    """

    def __init__(self, without: str, **options: Any) -> None:
        class Ablated(Block):
            def __init__(self, dim: int, *args: Any, **mixing: Any) -> None:
                super().__init__(dim, *args, **mixing)
                *_, norm_layer = args
                self.token_mixer = MIXERS[without](dim, norm_layer, **mixing)

        super().__init__(block=Ablated, **options)


@HOOKS.register_module()
class ChannelsLastHook(Hook):
    """Lay out every network's maps as Hire-MLP lays out its own, for convolutions are faster so."""

    def before_train(self, runner: Runner) -> None:
        runner.model.to(memory_format=torch.channels_last)


@HOOKS.register_module()
class TrainingTimeHook(Hook):
    """Record beside each evaluation how many seconds the training took until then.

    On a CPU they are those that the process worked, whatever else the machine did meanwhile; on a
    GPU those that went by. Evaluations do not count, loading of data does.
    """

    def __init__(self) -> None:
        self.now = time.perf_counter if torch.cuda.is_available() else time.process_time

    def before_train_epoch(self, runner: Runner, **_: Any) -> None:
        self.mark = self.now()

    after_val_epoch = before_train_epoch

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        hub, now = runner.message_hub, self.now()
        hub.update_info("training_seconds", hub.get_info("training_seconds", 0) + now - self.mark)
        self.mark = now

    def before_val_epoch(self, runner: Runner) -> None:
        hub = runner.message_hub
        hub.update_scalar("val/training_seconds", hub.get_info("training_seconds", 0))
