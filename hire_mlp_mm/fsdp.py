"""What mmengine's FSDPStrategy lacks to train a model with Hire-MLP.

Configs name these by their place: `hire_mlp_mm.fsdp.FSDPStrategy`, `hire_mlp_mm.fsdp.blocks_apart`.
"""

from __future__ import annotations

from typing import Any

from mmengine._strategy import fsdp
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from .hire_mlp import Block


def blocks_apart(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """FSDP's `auto_wrap_policy`: each block of Hire-MLP is gathered and freed by itself.

    All else is gathered together for the whole step. A policy by size would wrap necks and heads,
    too, of which the hosts call `loss` and `predict`: FSDP gathers weights for `forward` only.
    """
    return recurse or isinstance(module, Block)


class FSDPStrategy(fsdp.FSDPStrategy):
    """mmengine's, which passes over its `sync_bn`, and cannot resume with torch 2.1 or later."""

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        return super()._wrap_model(self.convert_model(model))

    def load_optim_state_dict(self, state_dict: dict[str, Any]) -> None:
        # torch 2.1 changed the order of these.
        state = FullyShardedDataParallel.optim_state_dict_to_load(
            model=self.model,
            optim=self.optim_wrapper.optimizer,
            optim_state_dict=state_dict,
        )
        self.optim_wrapper.load_state_dict(state)
