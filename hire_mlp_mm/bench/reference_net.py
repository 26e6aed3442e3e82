"""Run a HireMLPNet's weights by the reference's forward, step by step as its code takes them.

It is the baseline of speed and memory, and of the equality tests. It copies and permutes where the
reference does: a clone for each region branch, a roll, a circular pad, regions into channels, 1x1
convolutions, and all the way back. It needs torch only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..hire_mlp import Block, HireMLPNet, HireModule, Mlp, RegionBranch


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Apply a 1x1 convolution; `weight` may be ours, whose kernel is the region: a view."""
    return F.conv2d(x, weight.reshape(weight.shape[0], -1, 1, 1), bias)


def to_regions(x: Tensor, axis: int, p: int) -> Tensor:
    """Move tokens of a region into channels: (B, C, H, W) to (B, C * p, H / p, W), or along W."""
    B, C, H, W = x.shape
    if axis == 2:
        x = x.reshape(B, C, H // p, p, W).permute(0, 1, 3, 2, 4)
        return x.reshape(B, C * p, H // p, W)
    return x.reshape(B, C, H, W // p, p).permute(0, 1, 4, 2, 3).reshape(B, C * p, H, W // p)


def from_regions(x: Tensor, axis: int, p: int) -> Tensor:
    """Undo `to_regions`."""
    B, Cp, H, W = x.shape
    x = x.reshape(B, Cp // p, p, H, W)
    if axis == 2:
        return x.permute(0, 1, 3, 2, 4).reshape(B, Cp // p, H * p, W)
    return x.permute(0, 1, 3, 4, 2).reshape(B, Cp // p, H, W * p)


def constant_pad(x: Tensor, axis: int, front: int, back: int, mode: str) -> Tensor:
    """Pad an axis, with zeros or by `mode` of torch."""
    sides = (0, 0, front, back) if axis == 2 else (front, back, 0, 0)
    return F.pad(x, sides, mode="constant" if mode == "zero" else mode)


def region_branch(x: Tensor, branch: RegionBranch) -> Tensor:
    """Mix the tokens of each region along an axis."""
    axis, p, shift = branch.axis, branch.region_size, branch.shift
    size = x.shape[axis]
    x = x.clone()
    if shift and branch.shift_padding == "circular":
        x = torch.roll(x, shift, axis)
    elif shift:
        x = constant_pad(x, axis, shift, 0, "zero").narrow(axis, 0, size)
    x = constant_pad(x, axis, 0, -size % p, branch.region_padding)
    x = to_regions(x, axis, p)
    x = pointwise(x, branch.reduce.weight, None)
    x = pointwise(branch.act(branch.norm(x)), branch.expand.weight, branch.expand.bias)
    x = from_regions(x, axis, p).narrow(axis, 0, size)
    if shift and branch.shift_padding == "circular":
        x = torch.roll(x, -shift, axis)
    return x


def hire_module(x: Tensor, mixer: HireModule) -> Tensor:
    """Add up the three branches, weighed by the gate."""
    B, C = x.shape[:2]
    height = region_branch(x, mixer.height)
    width = region_branch(x, mixer.width)
    channel = mixer.channel(x)
    mean = (height + width + channel).flatten(2).mean(2)[..., None, None]
    gate = mlp(mean, mixer.reweight).reshape(B, C, 3).permute(2, 0, 1).softmax(0)[..., None, None]
    return mixer.proj(height * gate[0] + width * gate[1] + channel * gate[2])


def mlp(x: Tensor, layers: Mlp) -> Tensor:
    """Mix channels."""
    return layers.fc2(F.gelu(layers.fc1(x)))


def block(x: Tensor, block: Block) -> Tensor:
    """Mix tokens, then channels, each beside a shortcut."""
    x = x + block.drop_path(hire_module(block.norm1(x), block.token_mixer))
    return x + block.drop_path(mlp(block.norm2(x), block.mlp))


class ReferenceNet(nn.Module):
    """The reference's network around the modules of `net`; the parameters are shared.

    It stops where the reference stops: on maps smaller than the padding of a region.
    """

    def __init__(self, net: HireMLPNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Give the maps of `HireMLPNet.forward`."""
        net: Any = self.net
        x = net.stem(x)
        outputs = []
        for i, stage in enumerate(net.stages):
            x = stage.downsample(x)
            for one in stage.blocks:
                x = block(x, one)
            if i in net.out_indices:
                outputs.append(getattr(net, f"norm{i}")(x))
        return tuple(outputs)
