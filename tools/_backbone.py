"""Other ways to run the backbone of a model: compiled, in another type, channels last."""

from __future__ import annotations

import torch
from _common import UserError
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.fx.experimental import _config as symbolic_shapes

from hire_mlp_mm.fuse import FusedHireMLP, fuse
from hire_mlp_mm.hire_mlp import HireMLPNet

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Backbone = HireMLPNet | FusedHireMLP


def backbones(model: nn.Module) -> list[Backbone]:
    """The HireMLP networks in a model.

    Raises:
        UserError: there is none.
    """
    found = [m for m in model.modules() if isinstance(m, (HireMLPNet, FusedHireMLP))]
    if not found:
        raise UserError(f"no HireMLP in {type(model).__name__}; expected a model with one")
    return found


def compile_blocks(backbone: Backbone) -> None:
    """Compile every block of a backbone, a graph each, for images of any size.

    Blocks of a stage that shift alike share a graph, so that this takes a fraction of the time of
    one graph for the whole network, whose sizes grow into long expressions stage by stage.

    Raises:
        UserError: the backbone recomputes blocks, which compiled ones do by themselves.
    """
    config = torch._dynamo.config
    limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    # A graph for each stage and shift, in training and in evaluation; torch allows 8.
    setattr(config, limit, max(getattr(config, limit), 64))
    # A map as high as it has channels is chance, and no reason for a graph of its own.
    symbolic_shapes.use_duck_shape = False
    for stage in backbone.stages:
        if getattr(stage, "with_cp", False):
            raise UserError("--compile-backbone: expected with_cp=False in the backbone's config")
        for block in stage.blocks:
            block.compile(fullgraph=True, dynamic=True)


def run_in(backbone: Backbone, dtype: torch.dtype) -> None:
    """Have a backbone compute in another type; its maps come out in float32 for what reads them."""
    if isinstance(backbone, FusedHireMLP):  # in the type of its weights
        backbone.to(dtype)
        return
    forward = backbone.forward

    def in_autocast(image: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(image.device.type, dtype):
            outputs = forward(image)
        return tuple(out.float() for out in outputs)

    backbone.forward = in_autocast  # type: ignore[method-assign]


def use_channels_last(model: nn.Module) -> None:
    """Convolution weights channels last, and maps from the backbone on."""
    model.to(memory_format=torch.channels_last)
    for backbone in backbones(model):
        backbone.register_forward_pre_hook(
            lambda _, inputs: (inputs[0].contiguous(memory_format=torch.channels_last),)
        )


class BackboneHook(Hook):
    """Prepares a runner's model, once its weights are loaded.

    Args:
        fused: put the exact inference form in the model's place (for testing).
        dtype: type in which the backbone computes; None for the model's own.
        channels_last: see `use_channels_last`.
        compiled: see `compile_blocks`.
    """

    priority = "LOWEST"  # after an average's weights come in

    def __init__(
        self, fused: bool, dtype: torch.dtype | None, channels_last: bool, compiled: bool
    ) -> None:
        self.fused, self.dtype = fused, dtype
        self.channels_last, self.compiled = channels_last, compiled

    def before_train(self, runner: Runner) -> None:
        self.prepare(runner)

    def before_test_epoch(self, runner: Runner) -> None:
        self.prepare(runner)

    def prepare(self, runner: Runner) -> None:
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
        if self.channels_last:
            use_channels_last(model)
