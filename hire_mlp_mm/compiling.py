"""Compile the blocks of a network with `torch.compile`, for images of any size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.fx.experimental import _config

from .errors import UserError
from .fuse import FusedHireMLP
from .hire_mlp import HireMLPNet
from .lean import RecomputedBlock

symbolic_shapes: Any = _config
GRAPHS = 64  # for each stage and shift, in training and in evaluation; torch allows 8


@contextmanager
def compiling() -> Iterator[None]:
    """Set torch's compiler for compiled blocks, within this context alone."""
    config = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    graphs = max(getattr(config, limit), GRAPHS)
    # A map as high as it has channels is a coincidence, which needs no graph of its own.
    with config.patch(**{limit: graphs}), symbolic_shapes.patch(use_duck_shape=False):
        yield


def compile_blocks(backbone: HireMLPNet | FusedHireMLP) -> None:
    """Compile every block of a backbone, to be run within `compiling()` on images of any size.

    Blocks of a stage that shift alike share a graph, so this takes a fraction of the time of one
    graph for the whole network, whose sizes grow into long expressions stage by stage.

    Raises:
        UserError: the backbone computes its blocks again in the backward pass.
    """
    stages: Any = backbone.stages
    for stage in stages:
        for block in stage.blocks:
            if isinstance(block, RecomputedBlock):
                raise UserError(
                    "--compile-backbone: expected with_cp=False in the backbone's config"
                )
            block.compile(fullgraph=True, dynamic=True)
