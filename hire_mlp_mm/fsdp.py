"""Divide a model with Hire-MLP among processes, by PyTorch's FSDP and mmengine's strategy for it.

Configs name these in full: `hire_mlp_mm.fsdp.FSDPStrategy`, `hire_mlp_mm.fsdp.blocks_apart`.
"""

from __future__ import annotations

from typing import Any

from mmengine.registry import STRATEGIES
from torch import nn

from .hire_mlp import Block
from .host_faults import FSDPStrategyFaults

HostStrategy: Any = STRATEGIES.get("FSDPStrategy")


def blocks_apart(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """Have FSDP gather and free each block of Hire-MLP by itself (an `auto_wrap_policy`).

    All else is gathered together for the whole step. A policy by size would wrap necks and heads,
    too, of which the hosts call `loss` and `predict`: FSDP gathers weights for `forward` only.
    """
    return recurse or isinstance(module, Block)


class FSDPStrategy(FSDPStrategyFaults, HostStrategy):
    """Train with mmengine's FSDPStrategy, which here synchronizes norms and resumes."""
