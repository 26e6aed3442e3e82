"""Hire-MLP: a vision MLP that mixes tokens by hierarchical rearrangement.

Paper: "Hire-MLP: Vision MLP via Hierarchical Rearrangement" (arXiv 2108.13341, CVPR 2022).
Reference code: ggjy/Hire-Wave-MLP.pytorch, `mlp_based/hire_mlp.py` (classifier) and
`mmseg-v0.11/mmseg/models/backbones/hire_mlp.py` (dense backbone, which adds the output norms).

The network, from the image down (every map is B, C, H, W)::

    stem                      conv 7x7 stride 4, norm, ReLU
    stages.0..3               each: downsample (not in stage 0), then blocks
      downsample              conv 3x3 stride 2, norm, ReLU
      blocks.j                x + token_mixer(norm1(x)), then x + mlp(norm2(x))
        token_mixer           the hire module
          height, width       region branches: an MLP over the tokens of a region, along one axis
          channel             pointwise branch
          reweight            gate: softmax over the three branches, per image and channel
          proj                pointwise output
    norm0..norm3              norm on each output; norm3 stands where the classifier's `norm` stands

Words of the paper and the reference code, and the ones used here:

======================  ====================  ==================================================
reference               here                  meaning
======================  ====================  ==================================================
`pixel`, h = w          `region_size`         tokens per region (inner-region rearrangement)
`step`, s               `shift`               circular shift in tokens (cross-region rearrangement)
`step_stride`           `shift_periods`       the period in `(j % period) * step`, block j's shift
`step_dilation`         `shift_steps`         the step in it
`step_pad_mode`         `shift_padding`       what a shift brings in: `circular`, `zero`
`pixel_pad_mode`        `region_padding`      what fills the last region: those, or `replicate`
`attn`                  `token_mixer`         the hire module
`mlp_h*`, `mlp_w*`      `height`, `width`     region branches
`mlp_c`                 `channel`             pointwise branch
======================  ====================  ==================================================

The sizes stand in `arch.py`, shifts and memory layouts in `ops.py`, blocks that take less memory
for the same numbers in `lean.py`, the inference form in `fuse.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from . import ops
from .arch import ArchLike, check_choice, check_out_indices, resolve_arch

NormLayer = Callable[[int], nn.Module]

HEIGHT, WIDTH = 2, 3  # axes of a (B, C, H, W) map


class RegionBranch(nn.Module):
    """Mix the tokens of each region along one axis, all channels at once (paper v1, eq. 2, 3).

    The reference moves a region's p tokens into channels and applies a 1x1 convolution to the
    p * C channels. That equals a convolution with a kernel and a stride of p along the axis: this
    is `reduce`, whose weight is a view of the reference's.

    Args:
        dim, axis: channels C, and `HEIGHT` or `WIDTH`.
        norm_layer: builds the norm of the C // 2 hidden channels.
        region_size, shift, shift_padding, region_padding: see `ops.shift`.
    """

    def __init__(
        self,
        dim: int,
        axis: int,
        norm_layer: NormLayer,
        region_size: int,
        shift: int = 0,
        shift_padding: str = "circular",
        region_padding: str = "circular",
    ) -> None:
        super().__init__()
        self.axis, self.region_size, self.shift = axis, region_size, shift
        self.shift_padding, self.region_padding = shift_padding, region_padding
        kernel = (region_size, 1) if axis == HEIGHT else (1, region_size)
        self.reduce = nn.Conv2d(dim, dim // 2, kernel, stride=kernel, bias=False)
        self.norm = norm_layer(dim // 2)
        self.act = nn.ReLU(inplace=True)
        self.expand = nn.Conv2d(dim // 2, dim * region_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return self.restore(self.reduce(self.rearrange(x)), x.shape[self.axis])

    def rearrange(self, x: Tensor) -> Tensor:
        """Shift (B, C, H, W) across regions; along the axis p divides the size of the result."""
        paddings = (self.shift_padding, self.region_padding)
        return ops.shift(x, self.axis, self.shift, self.region_size, *paddings)

    def restore(self, hidden: Tensor, size: int) -> Tensor:
        """Turn hidden regions, one vector of C // 2 each, into tokens (B, C, H, W); shift back.

        As in the reference, a shift that brought in zeros is not undone.
        """
        regions = self.expand(self.act(self.norm(hidden)))
        x = ops.regions_to_tokens(regions, self.axis, self.region_size)
        return ops.unshift(x, self.axis, self.shift * (self.shift_padding == "circular"), size)

    def extra_repr(self) -> str:
        axis = "height" if self.axis == HEIGHT else "width"
        return f"axis={axis}, region_size={self.region_size}, shift={self.shift}"


class Mlp(nn.Module):
    """Mix channels: two 1x1 convolutions with a GELU between them."""

    def __init__(self, dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden_dim, out_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) to (B, out_dim, H, W)."""
        return self.fc2(self.act(self.fc1(x)))


class HireModule(nn.Module):
    """Mix tokens: two region branches and a pointwise one, gated per image and channel.

    The gate (reference `reweight`; not in version 1 of the paper, which sums the branches) sees
    the branches' sum averaged over the whole map, so every output token depends on every input
    token. `norm_layer` and `options` go to `RegionBranch`.
    """

    def __init__(self, dim: int, norm_layer: NormLayer, **options: Any) -> None:
        super().__init__()
        self.height = RegionBranch(dim, HEIGHT, norm_layer, **options)
        self.width = RegionBranch(dim, WIDTH, norm_layer, **options)
        self.channel = nn.Conv2d(dim, dim, 1)
        self.reweight = Mlp(dim, dim // 4, dim * 3)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        branches = (self.height(x), self.width(x), self.channel(x))
        return self.proj(weighted_sum(self.gate(*branches), *branches))

    def gate(self, *branches: Tensor) -> Tensor:
        """Weigh three branches (B, C, H, W): (3, B, C, 1, 1), whose sum over the first is 1."""
        mean = torch.stack([branch.mean((2, 3), keepdim=True) for branch in branches]).sum(0)
        # (B, 3C, 1, 1) -> (B, C, 3, 1, 1): channel outer, branch inner -> (3, B, C, 1, 1)
        return self.reweight(mean).unflatten(1, (-1, 3)).softmax(2).permute(2, 0, 1, 3, 4)


def weighted_sum(weights: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    """Add three maps (B, C, H, W) by their weights (3, B, C, 1, 1), in three passes."""
    return torch.addcmul(torch.addcmul(first * weights[0], second, weights[1]), third, weights[2])


class DropPath(nn.Module):
    """Drop a residual branch for whole images and scale the others up (stochastic depth)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        return x / keep * (torch.rand_like(x[:, :1, :1, :1]) + keep).floor()

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class Block(nn.Module):
    """Mix tokens, then channels, each behind a norm and beside a shortcut (paper v1, eq. 1)."""

    def __init__(
        self, dim: int, mlp_ratio: float, drop_path: float, norm_layer: NormLayer, **options: Any
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.token_mixer = HireModule(dim, norm_layer, **options)
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        x = x + self.drop_path(self.token_mixer(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class ConvNormAct(nn.Module):
    """Convolution, norm, ReLU: the stem and the downsampling layers."""

    def __init__(
        self, in_dim: int, dim: int, kernel: int, stride: int, padding: int, norm_layer: NormLayer
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_dim, dim, kernel, stride, padding)
        self.norm = norm_layer(dim)
        self.act = nn.ReLU(inplace=True)
        self.smallest = kernel - 2 * padding  # least side of a map that gives an output

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_dim, H, W) to (B, dim, H', W'), H' = (H + 2 padding - kernel) // stride + 1.

        A map too small for the kernel is padded with zeros at its end until the kernel fits once.
        """
        return self.act(self.norm(self.proj(ops.pad_to_smallest(x, self.smallest))))


class Stage(nn.Module):
    """Downsample (not in the first stage), then run blocks at one resolution."""

    def __init__(self, downsample: nn.Module, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C, ceil(H / 2), ceil(W / 2)); the first stage keeps H, W."""
        x = self.downsample(x)
        for block in self.blocks:
            x = block(x)
        return x


class HireMLPNet(nn.Module):
    """Multi-scale Hire-MLP backbone in plain torch.

    Args:
        arch: `tiny`, `small`, `base`, `large`, a dict of `Arch` fields, or an `Arch`.
        in_channels: channels of the image.
        out_indices: stages whose output is returned, ascending. Stages after the last one are
            not built.
        output_norm: a norm on each output (`norm0`..`norm3`).
        drop_path_rate: of the last block; it grows linearly from 0 at the first.
        shift_padding: `circular` or `zero`.
        region_padding: `circular`, `zero` or `replicate`.
        norm_layer: builds a norm from a number of channels.
        block: class of the blocks. `lean.LeanBlock` keeps less for the backward pass,
            `lean.RecomputedBlock` next to nothing, for the same numbers.

    Attributes:
        out_channels: channels of each output.
        strides: stride of each output with respect to the image, in pixels.

    Raises:
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        arch: ArchLike = "small",
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        output_norm: bool = True,
        drop_path_rate: float = 0.0,
        shift_padding: str = "circular",
        region_padding: str = "circular",
        norm_layer: NormLayer = nn.BatchNorm2d,
        block: type[Block] = Block,
    ) -> None:
        super().__init__()
        self.arch = resolve_arch(arch)
        dims, depths = self.arch.dims, self.arch.depths
        self.out_indices = check_out_indices(out_indices, len(dims))
        check_choice("shift_padding", shift_padding, ops.SHIFT_PADDINGS)
        check_choice("region_padding", region_padding, ops.REGION_PADDINGS)
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f"HireMLP: drop_path_rate={drop_path_rate}; expected 0 <= rate < 1")
        self.out_channels = tuple(dims[i] for i in self.out_indices)
        self.strides = tuple(4 * 2**i for i in self.out_indices)

        self.stem = ConvNormAct(in_channels, dims[0], 7, 4, 2, norm_layer)
        self.stages = nn.ModuleList()
        last_block = max(1, sum(depths) - 1)
        for i in range(self.out_indices[-1] + 1):
            blocks = [
                block(
                    dims[i],
                    self.arch.mlp_ratios[i],
                    drop_path_rate * (sum(depths[:i]) + j) / last_block,
                    norm_layer,
                    region_size=self.arch.region_sizes[i],
                    shift=self.arch.shift(i, j),
                    shift_padding=shift_padding,
                    region_padding=region_padding,
                )
                for j in range(depths[i])
            ]
            downsample = ConvNormAct(dims[i - 1], dims[i], 3, 2, 1, norm_layer) if i else None
            self.stages.append(Stage(downsample or nn.Identity(), blocks))
        for i in self.out_indices:
            self.add_module(f"norm{i}", norm_layer(dims[i]) if output_norm else nn.Identity())
        self.apply(init_module)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature pyramid of an image batch (B, in_channels, H, W) of any size.

        Returns:
            For each of `out_indices`, (B, C_i, H_i, W_i): H_0 = max(1, (H + 1) // 4), then each
            stage halves, rounding up; the same for W. Their memory format is the image's.

        Raises:
            ValueError: the images are of another shape.
        """
        image, outputs = ops.check_image(x, self.stem.proj.in_channels), []
        x = self.stem(image.contiguous(memory_format=torch.channels_last))
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                outputs.append(ops.lay_out_like(getattr(self, f"norm{i}")(x), image))
        return tuple(outputs)


def init_module(module: nn.Module) -> None:
    """Draw weights as the reference's `cls_init_weights`: trunc_normal of std 0.02, biases 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, (_BatchNorm, nn.GroupNorm, nn.LayerNorm)) and module.weight is not None:
        nn.init.ones_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
