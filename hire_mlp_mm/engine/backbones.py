"""Other ways to run the backbone of a model: compiled, in another type, channels last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import Tensor, nn
from torch.fx.experimental import _config

from ..errors import UserError
from ..fuse import FusedHireMLP, fuse
from ..hire_mlp import HireMLPNet
from ..registry import HOOKS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
symbolic_shapes: Any = _config
GRAPHS = 64  # for each stage and shift, in training and in evaluation; torch allows 8

Backbone = HireMLPNet | FusedHireMLP


def backbones(model: nn.Module) -> list[Backbone]:
    """Return the HireMLP networks in a model.

    Raises:
        UserError: there is none.
    """
    found = [m for m in model.modules() if isinstance(m, (HireMLPNet, FusedHireMLP))]
    if not found:
        raise UserError(f"no HireMLP in {type(model).__name__}; expected a model with one")
    return found


@contextmanager
def compiling() -> Iterator[None]:
    """Set torch's compiler for compiled blocks, within this context alone."""
    config = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    with ExitStack() as stack:
        most = max(getattr(config, limit), GRAPHS)
        stack.enter_context(config.patch(**{limit: most}))
        # A map as high as it has channels is chance, and no reason for a graph of its own.
        stack.enter_context(symbolic_shapes.patch(use_duck_shape=False))
        yield


def compile_blocks(backbone: Backbone) -> None:
    """Compile every block of a backbone, a graph each, for images of any size.

    Blocks of a stage that shift alike share a graph, so that this takes a fraction of the time of
    one graph for the whole network, whose sizes grow into long expressions stage by stage. Run
    them within `compiling()`.

    Raises:
        UserError: the backbone recomputes blocks, which compiled ones do by themselves.
    """
    stages: Any = backbone.stages
    for stage in stages:
        if getattr(stage, "with_cp", False):
            raise UserError("--compile-backbone: expected with_cp=False in the backbone's config")
        for block in stage.blocks:
            block.compile(fullgraph=True, dynamic=True)


def run_in(backbone: Backbone, dtype: torch.dtype) -> None:
    """Have a backbone compute in another type; its maps come out in float32 for what reads them."""
    if isinstance(backbone, FusedHireMLP):  # in the type of its weights
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
class BackboneHook(Hook):
    """Prepare a runner's model to run in another way, once its weights are loaded.

    Args:
        fused: put the exact inference form in the model's place (for testing).
        dtype: type in which the backbone computes, of `DTYPES`; None for the model's own.
        channels_last: see `use_channels_last`.
        compiled: see `compile_blocks`.
    """

    priority = "LOWEST"  # after an average's weights come in

    def __init__(
        self,
        fused: bool = False,
        dtype: str | None = None,
        channels_last: bool = False,
        compiled: bool = False,
    ) -> None:
        self.fused, self.dtype = fused, DTYPES[dtype] if dtype else None
        self.channels_last, self.compiled = channels_last, compiled
        self.settings = ExitStack()  # of the compiler

    def before_train(self, runner: Any) -> None:
        self.prepare(runner)

    def before_test_epoch(self, runner: Any) -> None:
        self.prepare(runner)

    def after_run(self, runner: Any) -> None:
        self.settings.close()

    def prepare(self, runner: Any) -> None:
        """Change the model as the options say.

        Raises:
            UserError: the model has no HireMLP, or one that cannot be changed so.
        """
        holder, name = runner, "model"
        while is_model_wrapper(getattr(holder, name)):
            holder, name = getattr(holder, name), "module"
        if self.fused:
            try:
                setattr(holder, name, fuse(getattr(holder, name)))
                runner.logger.info("testing the exact inference form: BatchNorm is folded")
            except ValueError as error:
                raise UserError(f"--{error}") from error
        model = getattr(holder, name)
        for backbone in backbones(model):
            if self.dtype is not None:
                run_in(backbone, self.dtype)
            if self.compiled:
                compile_blocks(backbone)
        if self.compiled:
            self.settings.enter_context(compiling())
        if self.channels_last:
            use_channels_last(model)
