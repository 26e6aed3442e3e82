"""Measure what a network gives: build its parts, and run them on a random image."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..errors import describe
from .changes import Swap, SwapError, as_list, is_list

SIZES = (256, 224, 512)  # of images to try
SMALL = 128  # takes a fraction of their time


@dataclass(frozen=True)
class Map:
    """Describe one output: its channels, and its stride in pixels (None for a vector)."""

    channels: int
    stride: int | None


@dataclass
class Flow:
    """Hold the maps that a backbone gives for an image of `size` pixels, and those of its neck."""

    size: int
    backbone: list[Map]
    neck: list[Map] | None

    @property
    def out(self) -> list[Map]:
        """Return what the heads read."""
        return self.backbone if self.neck is None else self.neck

    @classmethod
    def run(cls, backbone: ConfigDict, neck: Any, sizes: Sequence[int]) -> Flow:
        """Run both on a random image of the first size that they take, or raise SwapError."""
        model, necks = build(backbone), [build(part) for part in as_list(neck)]
        for size in sizes:
            image = torch.rand(2, backbone.get("in_channels", 3), size, size)
            try:
                maps = given = forward(model, image)
                for part in necks:
                    maps = forward(part, maps)
            except SwapError:
                raise
            except Exception as error:  # whatever a stranger's backbone or neck raises
                fault = error
                continue
            made = [measure(m, size) for m in maps] if necks else None
            return cls(size, [measure(m, size) for m in given], made)
        names = " and ".join(str(part.type) for part in (backbone, *as_list(neck)))
        raise SwapError(f"{names} cannot be run on an image alone: {describe(fault)}") from fault


def measure_old(swap: Swap) -> Flow:
    """Measure the old backbone and neck; a classifier's may be anything, and is replaced."""
    backbone, neck = swap.network.backbone, swap.network.get("neck")
    made_for = sorted(as_list(backbone.get("img_size")))[-1:]  # which some backbones insist on
    try:
        return Flow.run(backbone, neck, [*made_for, *SIZES])
    except SwapError:
        if not swap.is_classifier:
            raise
        return Flow(224, [Map(0, None)], None)


def build(part: ConfigDict) -> Any:
    """Build a part of the network without weights."""
    part = copy.deepcopy(part)
    for key in ("init_cfg", "pretrained"):
        part.pop(key, None)
    model = MODELS.build(part)
    model.train()  # some give more outputs in training; some return None here
    return model


@torch.no_grad()
def forward(model: nn.Module, inputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Run a backbone or neck; return its outputs as a flat tuple of tensors."""
    out = model(inputs)
    out = (out,) if isinstance(out, Tensor) else tuple(out)
    if not out or not all(isinstance(x, Tensor) and x.dim() in (2, 4) for x in out):
        raise SwapError(f"{type(model).__name__} gives tokens or other things beside feature maps")
    return out


def measure(output: Tensor, size: int) -> Map:
    """Return channels and stride of one output for an image of `size` pixels."""
    if output.dim() == 2:
        return Map(output.shape[1], None)
    # The nearest power of two, for sizes are rounded up or down on the way.
    return Map(output.shape[1], 2 ** round(math.log2(size / output.shape[-1])))


# Whole networks ----------------------------------------------------------------------------------


def check_swap(swap: Swap, size: int) -> None:
    """Build the new model; run a segmentor or classifier forward and backward, too.

    Raises:
        SwapError: it does not build, or does not run where the original does.
    """
    is_detector = swap.cfg.default_scope == "mmdet"  # wants annotations, even for a forward pass
    try:
        if is_detector:
            build(swap.network)
        elif run_small(swap.network, size):
            swap.set(swap.cfg, "", "find_unused_parameters", True)
    except Exception as error:  # whatever a head raises about maps that it was not made for
        if not is_detector:
            try:
                run_whole(swap.original, size)
            except Exception:  # it wants annotations, or compiled ops, with any backbone
                return
        raise SwapError(f"the heads cannot read HireMLP's maps: {describe(error)}") from error


def run_small(network: ConfigDict, size: int) -> list[str]:
    """Do as `run_whole` does on a small image if every head takes it, else on a large one."""
    try:
        return run_whole(network, min(size, SMALL))
    except Exception:  # whatever a head raises about small maps
        return run_whole(network, size)


def run_whole(network: ConfigDict, size: int) -> list[str]:
    """Run every head on a random image; name the backbone's parameters without a gradient."""
    network = copy.deepcopy(network)
    network.backbone.init_cfg = None
    model = build(network)
    image = torch.rand(2, network.backbone.get("in_channels", 3), size, size)
    outputs = [model(image, None, mode="tensor")]  # MMPose has no default for the annotations
    if getattr(model, "with_auxiliary_head", False):
        maps, heads = model.extract_feat(image), model.auxiliary_head
        outputs += [head(maps) for head in (heads if isinstance(heads, nn.ModuleList) else [heads])]
    sum((x.float().sum() for x in tensors(outputs)), torch.zeros(())).backward()
    parameters = model.backbone.named_parameters()
    return [name for name, p in parameters if p.requires_grad and p.grad is None]


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
        return
    parts = value.values() if isinstance(value, dict) else value if is_list(value) else ()
    for part in parts:
        yield from tensors(part)
