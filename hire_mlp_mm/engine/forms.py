"""Bring a whole model into another form: fused, in mixed precision, channels last, compiled."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks.wrappers import Conv2d
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..compiling import compile_blocks, compiling
from ..errors import UserError
from ..fuse import FusedHireMLP, fuse
from ..hire_mlp import HireMLPNet
from ..registry import HOOKS

HALF = (torch.bfloat16, torch.float16)
DTYPES = ("auto", "bfloat16", "float16")
SLOW = "this CPU has no bfloat16: without --amp it is faster"
# What torch calls the instructions for products in bfloat16, of x86 and of ARM.
FAST = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
# What computes as these do can be folded; others change their weights or maps in other ways.
CONVOLUTIONS = (nn.Conv2d.forward, Conv2d.forward)
NORMS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)

Backbone = HireMLPNet | FusedHireMLP


def backbones(model: nn.Module) -> list[Backbone]:
    """List the HireMLP networks in a model; raise UserError where there is none."""
    found = [m for m in model.modules() if isinstance(m, Backbone)]
    if not found:
        raise UserError(f"no HireMLP in {type(model).__name__}; expected a model with one")
    return found


def speed_up(
    model: nn.Module,
    fused: bool = False,
    dtype: torch.dtype | None = None,
    channels_last: bool = False,
) -> nn.Module:
    """Return a model in the fastest form for inference that is asked for.

    Args:
        model: in evaluation mode, on its device; is changed, or left alone where `fused`.
        fused: take the exact form; see `fuse_model`.
        dtype: of mixed precision; see `mix_precision`.
        channels_last: see `use_channels_last`; so it is in either of these forms, too.

    Raises:
        UserError: no HireMLP in the model, or one that cannot be fused.
    """
    if fused:
        model = fuse_model(model)
    if dtype is not None:
        mix_precision(model, dtype)
    if fused or dtype is not None or channels_last:
        use_channels_last(model)
    return model


def use_channels_last(model: nn.Module, weights: bool = True) -> None:
    """Lay maps from the backbone on channels last in memory, and convolution weights.

    Without `weights`, these stay as they are: where DistributedDataParallel holds them already, its
    first step would mix up the gradients of weights that are laid out in another way (torch 2.11).
    """
    if weights:
        nn.Module.to(model, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in model.modules():
        if isinstance(module, Backbone):  # others hand on what their convolutions give
            module.register_forward_pre_hook(
                lambda _, inputs: (inputs[0].contiguous(memory_format=torch.channels_last),)
            )


# Fused ------------------------------------------------------------------------------------------


def fuse_model(model: nn.Module) -> nn.Module:
    """Return the exact inference form of a whole model, for evaluation only.

    The backbone is fused (see `hire_mlp_mm.fuse`), BatchNorm in necks and heads is folded into the
    convolution before it, and what only training needs is left out: dropout, auxiliary heads.

    Raises:
        UserError: no HireMLP in the model, or one that cannot be fused.
    """
    try:
        fused = fuse(model)
    except ValueError as error:
        raise UserError(f"--{error}") from error
    for module in list(fused.modules()):
        if isinstance(module, ConvModule):
            fold_norm(module)
        if getattr(module, "auxiliary_head", None) is not None:
            setattr(module, "auxiliary_head", None)  # noqa: B010  for mypy
        for name, child in module.named_children():
            if isinstance(child, DROPOUTS):
                setattr(module, name, nn.Identity())
    return fused


def fold_norm(block: ConvModule) -> None:
    """Fold BatchNorm in evaluation mode into the convolution before it, where both are plain."""
    conv, norm = block.conv, block.norm
    if (
        type(block).forward is ConvModule.forward
        and block.order.index("norm") == block.order.index("conv") + 1
        and type(conv).forward in CONVOLUTIONS
        and isinstance(conv.weight, nn.Parameter)  # and not computed, as by spectral norm
        and norm is not None
        and type(norm).forward in NORMS
        and norm.running_mean is not None
    ):
        block.conv = fuse_conv_bn_eval(conv, norm)
        delattr(block, block.norm_name)
        block.with_norm, block.norm_name = False, None


# Mixed precision --------------------------------------------------------------------------------


def half_type(name: str, device: str | torch.device) -> torch.dtype:
    """Return the type of mixed precision: of `auto`, bfloat16 on a CPU and float16 on a GPU.

    Raises:
        UserError: another name, or float16 on a CPU.
    """
    if name not in DTYPES:
        raise UserError(f"dtype {name}: expected one of {', '.join(DTYPES)}")
    on_cpu = torch.device(device).type == "cpu"
    if on_cpu and name == "float16":
        raise UserError("float16 on a CPU: expected bfloat16")
    if name == "auto":
        name = "bfloat16" if on_cpu else "float16"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def is_slow(dtype: torch.dtype, device: torch.device) -> bool:
    """Tell whether a device is known to be slow in a type: a CPU without bfloat16."""
    if device.type != "cpu" or dtype != torch.bfloat16:
        return False
    known: Any = getattr(torch.cpu, "get_capabilities", dict)()  # nothing, of an older torch
    return bool(known) and not any(known.get(name) for name in FAST)


def mix_precision(model: nn.Module, dtype: torch.dtype, training: bool = False) -> None:
    """Have a whole model run under autocast when it is called, and give float32.

    See `have_float_outputs`. A fused backbone has its weights in `dtype` alone from then on.

    Args:
        model: is changed.
        dtype: of the products.
        training: run so in training alone; else in evaluation alone.
    """
    forget = have_float_outputs(model)
    called = model
    while isinstance(inner := getattr(called, "module", None), nn.Module):
        called = inner  # of test-time augmentation
    entered: list[torch.autocast] = []

    def enter(*_: Any) -> None:
        entered.append(autocast(called, dtype if called.training == training else None))
        entered[-1].__enter__()

    def leave(*_: Any) -> None:
        entered.pop().__exit__(None, None, None)
        forget()

    called.register_forward_pre_hook(enter)
    called.register_forward_hook(leave, always_call=True)
    for module in called.modules():
        if isinstance(module, FusedHireMLP):
            module.to(dtype)


def have_float_outputs(model: nn.Module) -> Callable[[], None]:
    """Have RoIs and what heads give be in float32 under autocast, and all that follows from it.

    That is anchors, box coders, NMS, masks, losses, metrics. By themselves the hosts make anchors
    and round RoIs in the type of the maps, and bfloat16 has steps of 4 between 512 and 1024, so
    that boxes would be pixels off. RoIAlign reads maps in float32, too: those of an image are
    converted once for all stages.

    Returns:
        What forgets an image's maps.
    """
    known: list[tuple[Tensor, Tensor]] = []

    def once(given: Tensor) -> Tensor:
        found = next((after for before, after in known if before is given), None)
        if found is None:
            found = as_float(given)
            known.append((given, found))
        return found

    for module in model.modules():
        if hasattr(module, "roi_layers"):
            module.register_forward_pre_hook(
                lambda _, inputs: (tuple(map(once, inputs[0])), *as_float(inputs[1:]))
            )
        if hasattr(module, "predict") or hasattr(module, "predict_by_feat"):
            module.register_forward_hook(lambda _, inputs, outputs: as_float(outputs))
        for name in ("predict_by_feat", "loss_by_feat"):
            if hasattr(module, name):  # MMSegmentation passes over hooks of its heads
                setattr(module, name, in_float(model, getattr(module, name)))
    return known.clear


def autocast(model: nn.Module, dtype: torch.dtype | None) -> torch.autocast:
    """Return autocast to a type on the device of a model; of None, autocast that is off."""
    device = next(model.parameters()).device.type
    return torch.autocast(device, dtype, enabled=dtype is not None)


def in_float(model: nn.Module, method: Callable[..., Any]) -> Callable[..., Any]:
    """Have a method of a model's part compute in float32, without autocast."""

    def run(*args: Any, **options: Any) -> Any:
        with autocast(model, None):
            return method(*as_float(args), **as_float(options))

    return run


def as_float(given: Any) -> Any:
    """Return half-precision tensors, in lists, tuples and dicts, in float32."""
    if type(given) in (list, tuple):
        return type(given)(as_float(one) for one in given)
    if type(given) is dict:
        return {key: as_float(value) for key, value in given.items()}
    return given.float() if isinstance(given, Tensor) and given.dtype in HALF else given


# In a runner ------------------------------------------------------------------------------------


@HOOKS.register_module()
@dataclass(eq=False)
class FormHook(Hook):
    """Bring the model of a runner into another form, once its weights are loaded.

    A training's form is not that of a test with the config that it leaves in its work dir.
    """

    training: bool = False  # when to do so: before a training, or else before a test
    fused: bool = False  # see `fuse_model` (for testing)
    dtype: str | None = None  # see `half_type` and `mix_precision`
    channels_last: bool = False  # see `use_channels_last`
    compiled: bool = False  # see `compile_blocks`

    priority = "LOWEST"  # after an average's weights have taken the model's place

    def __post_init__(self) -> None:
        self.compiler_settings = ExitStack()
        self.changed: nn.Module | None = None

    def before_train(self, runner: Any) -> None:
        if self.training:
            self.change(runner)

    def before_test_epoch(self, runner: Any) -> None:
        if not self.training:
            self.change(runner)

    def change(self, runner: Any) -> None:
        """Change the model, if it is not yet; raise UserError where it cannot be changed so."""
        owner, name = runner, "model"
        while is_model_wrapper(getattr(owner, name)):
            owner, name = getattr(owner, name), "module"
        if self.compiled:
            self.compiler_settings.enter_context(compiling())
        if getattr(owner, name) is not self.changed:
            alone = owner is runner  # and not within DistributedDataParallel or the like
            self.changed = self.in_form(getattr(owner, name), alone, runner.logger)
            setattr(owner, name, self.changed)

    def in_form(self, model: nn.Module, alone: bool, logger: logging.Logger) -> nn.Module:
        """Return a model in the form; it is changed, but where it is fused."""
        device, dtype = next(model.parameters()).device, None
        if self.dtype is not None:
            dtype = half_type(self.dtype, device)
            logger.info(f"mixed precision: float32 and {dtype}")
            if is_slow(dtype, device):
                logger.warning(SLOW)
        if not self.training:
            model = speed_up(model, self.fused, dtype, self.channels_last)
        elif dtype is not None:
            mix_precision(model, dtype, training=True)
        # Of mixed precision on a GPU it has not been measured whether this pays.
        by_itself = dtype is not None and device.type == "cpu"
        if self.training and (self.channels_last or by_itself):
            use_channels_last(model, weights=alone)
        if self.fused:
            logger.info("testing the exact inference form: BatchNorm is folded")
        if self.compiled:
            for backbone in backbones(model):
                compile_blocks(backbone)
        return model

    def after_run(self, runner: Any) -> None:
        self.compiler_settings.close()
