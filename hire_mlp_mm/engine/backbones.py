"""Run the backbone of a model in another way: fused, compiled, in another type, channels last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import Tensor, nn
from torch.fx.experimental import _config

from ..errors import UserError
from ..fuse import FusedHireMLP, fuse
from ..hire_mlp import HireMLPNet
from ..lean import RecomputedBlock
from ..registry import HOOKS

symbolic_shapes: Any = _config
DTYPES = ("float32", "bfloat16", "float16")
GRAPHS = 64  # for each stage and shift, in training and in evaluation; torch allows 8

Backbone = HireMLPNet | FusedHireMLP


def backbones(model: nn.Module) -> list[Backbone]:
    """List the HireMLP networks in a model; raise UserError where there is none."""
    found = [m for m in model.modules() if isinstance(m, (HireMLPNet, FusedHireMLP))]
    if not found:
        raise UserError(f"no HireMLP in {type(model).__name__}; expected a model with one")
    return found


def fuse_model(model: nn.Module) -> nn.Module:
    """Return the exact inference form of a model; raise UserError where it has none."""
    try:
        return fuse(model)
    except ValueError as error:
        raise UserError(f"--{error}") from error


@contextmanager
def compiling() -> Iterator[None]:
    """Set torch's compiler for compiled blocks, within this context alone."""
    config = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    graphs = max(getattr(config, limit), GRAPHS)
    # A map as high as it has channels is a coincidence, which needs no graph of its own.
    with config.patch(**{limit: graphs}), symbolic_shapes.patch(use_duck_shape=False):
        yield


def compile_blocks(backbone: Backbone) -> None:
    """Compile every block of a backbone, to be run within `compiling()` on images of any size.

    Blocks of a stage that shift alike share a graph, so this takes a fraction of the time of one
    graph for the whole network, whose sizes grow into long expressions stage by stage.
    """
    stages: Any = backbone.stages
    for stage in stages:
        for block in stage.blocks:
            if isinstance(block, RecomputedBlock):
                raise UserError(
                    "--compile-backbone: expected with_cp=False in the backbone's config"
                )
            block.compile(fullgraph=True, dynamic=True)


def run_in(backbone: Backbone, dtype: torch.dtype) -> None:
    """Have a backbone compute in another type, and return its maps in float32."""
    if isinstance(backbone, FusedHireMLP):  # computes in the type of its weights
        backbone.to(dtype)
        return
    entered: list[torch.autocast] = []

    def enter(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        entered.append(torch.autocast(inputs[0].device.type, dtype))
        entered[-1].__enter__()

    def leave(_: nn.Module, __: Any, outputs: tuple[Tensor, ...] | None) -> Any:
        entered.pop().__exit__(None, None, None)
        return outputs and tuple(out.float() for out in outputs)

    backbone.register_forward_pre_hook(enter)
    backbone.register_forward_hook(leave, always_call=True)


def use_channels_last(model: nn.Module) -> None:
    """Lay convolution weights channels last in memory, and maps from the backbone on."""
    nn.Module.to(model, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for backbone in backbones(model):
        backbone.register_forward_pre_hook(
            lambda _, inputs: (inputs[0].contiguous(memory_format=torch.channels_last),)
        )


@HOOKS.register_module()
@dataclass(eq=False)
class BackboneHook(Hook):
    """Change how the backbone of a runner's model runs, once its weights are loaded."""

    fused: bool = False  # put the exact inference form in the model's place (for testing)
    dtype: str | None = None  # in which the backbone computes, such as `bfloat16`
    channels_last: bool = False  # see `use_channels_last`
    compiled: bool = False  # see `compile_blocks`

    priority = "LOWEST"  # after an average's weights have taken the model's place

    def __post_init__(self) -> None:
        self.compiler_settings = ExitStack()
        if self.dtype not in (None, *DTYPES):
            raise ValueError(f"dtype={self.dtype!r}; expected one of {', '.join(DTYPES)}")

    def before_train(self, runner: Any) -> None:
        """Change the model; raise UserError where it cannot be changed so."""
        owner, name = runner, "model"
        while is_model_wrapper(getattr(owner, name)):
            owner, name = getattr(owner, name), "module"
        if self.fused:
            setattr(owner, name, fuse_model(getattr(owner, name)))
            runner.logger.info("testing the exact inference form: BatchNorm is folded")
        model = getattr(owner, name)
        for backbone in backbones(model):
            if self.dtype is not None:
                run_in(backbone, getattr(torch, self.dtype))
            if self.compiled:
                compile_blocks(backbone)
        if self.compiled:
            self.compiler_settings.enter_context(compiling())
        if self.channels_last:
            use_channels_last(model)

    before_test_epoch = before_train

    def after_run(self, runner: Any) -> None:
        self.compiler_settings.close()
