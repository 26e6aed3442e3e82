"""Hire-MLP: a vision MLP that mixes tokens by hierarchical rearrangement.

Paper: "Hire-MLP: Vision MLP via Hierarchical Rearrangement" (arXiv 2108.13341, CVPR 2022).
Reference code: ggjy/Hire-Wave-MLP.pytorch, `mlp_based/hire_mlp.py` (classifier) and
`mmseg-v0.11/mmseg/models/backbones/hire_mlp.py` (dense backbone, which adds the output norms).

The network, from the image down (all maps are B, C, H, W, in memory B, H, W, C)::

    stem                      conv 7x7 stride 4, BN, ReLU
    stages.0..3               each: downsample (not in stage 0), then blocks
      downsample              conv 3x3 stride 2, BN, ReLU
      blocks.j                x + token_mixer(norm1(x)), then x + mlp(norm2(x))
        token_mixer           the hire module
          height, width       region branches: an MLP over the tokens of a region, along one axis
          channel             pointwise branch
          reweight            gate: softmax over the three branches, per image and channel
          proj                pointwise output
    norm0..norm3              BN on each output; norm3 stands where the classifier's `norm` stands

Words of the paper and the reference code, and the ones used here:

======================  ====================  ==================================================
reference               here                  meaning
======================  ====================  ==================================================
`pixel`, h = w          `region_size`         tokens per region (inner-region rearrangement)
`step`, s               `shift`               circular shift in tokens (cross-region rearrangement)
`step_stride`           `shift_periods`       block j of a stage shifts by
`step_dilation`         `shift_steps`         `(j % period) * step` tokens
`step_pad_mode`         `shift_padding`       what a shift brings in: `circular`, `zero`
`pixel_pad_mode`        `region_padding`      what fills the last region: + `replicate`
`attn`                  `token_mixer`         the hire module
`mlp_h*`, `mlp_w*`      `height`, `width`     region branches
`mlp_c`                 `channel`             pointwise branch
======================  ====================  ==================================================

Only torch is imported here, and what the backward pass does in its own way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .backward import (
    circular_slice,
    circular_slice_gradient,
    conv_of,
    conv_of_norm,
    frozen_statistics,
    gather,
    gelu_gradient,
    is_hooked,
    plain_operations,
    weighted_sum,
    weighted_sum_gradient,
)

NormLayer = Callable[[int], nn.Module]

HEIGHT, WIDTH = 1, 2  # axes of a (B, H, W, C) map
HIDDEN_BYTES = 8 * 2**20  # of a channel MLP's hidden map at a time, in inference on a CPU
SHIFT_PADDINGS = ("circular", "zero")
REGION_PADDINGS = ("circular", "zero", "replicate")


@dataclass(frozen=True)
class Arch:
    """Shape of a Hire-MLP, one entry per stage (paper v1, table 1; reference `hire_mlp_*`).

    Args:
        depths: blocks in each stage.
        dims: channels of each stage.
        region_sizes: tokens per region, the paper's h = w.
        shift_periods: block j of a stage shifts by `(j % period) * step` tokens.
        shift_steps: see `shift_periods`.
        mlp_ratios: hidden channels of the channel MLP over `dims`.

    Raises:
        ValueError: the entries differ in length or are too small.
    """

    depths: Sequence[int]
    dims: Sequence[int]
    region_sizes: Sequence[int] = (4, 3, 3, 2)
    shift_periods: Sequence[int] = (2, 2, 3, 2)
    shift_steps: Sequence[int] = (2, 2, 1, 1)
    mlp_ratios: Sequence[float] = (4, 4, 4, 4)

    def __post_init__(self) -> None:
        for field in fields(self):
            values = tuple(getattr(self, field.name))
            object.__setattr__(self, field.name, values)
            if len(values) != len(self.dims):
                raise ValueError(
                    f"HireMLP: arch has {len(values)} {field.name} and {len(self.dims)} dims; "
                    f"give one of each per stage"
                )
            lowest = dict(shift_steps=0, dims=4).get(
                field.name, 1
            )  # the gate has dim // 4 channels
            if field.name != "mlp_ratios" and not all(
                isinstance(value, int) and value >= lowest for value in values
            ):
                raise ValueError(
                    f"HireMLP: arch {field.name}={values}; expected integers from {lowest} up"
                )
        if any(dim * ratio < 1 for dim, ratio in zip(self.dims, self.mlp_ratios, strict=True)):
            raise ValueError(f"HireMLP: arch mlp_ratios={self.mlp_ratios}; expected positive ones")

    def shift(self, stage: int, block: int) -> int:
        """Cross-region shift of a block, in tokens."""
        return block % self.shift_periods[stage] * self.shift_steps[stage]


ARCHS = {
    "tiny": Arch(depths=(2, 2, 4, 2), dims=(64, 128, 320, 512)),
    "small": Arch(depths=(3, 4, 10, 3), dims=(64, 128, 320, 512)),
    "base": Arch(depths=(4, 6, 24, 3), dims=(64, 128, 320, 512)),
    "large": Arch(depths=(4, 6, 24, 3), dims=(96, 192, 384, 768)),
}

ArchLike = str | Arch | Mapping[str, Sequence[int]]


def resolve_arch(arch: ArchLike) -> Arch:
    """The `Arch` record of a name, a dict of its fields, or a record itself.

    Raises:
        ValueError: an unknown name, an unknown or missing field, or unusable values.
    """
    if isinstance(arch, Arch):
        return arch
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(
                f"HireMLP: unknown arch {arch!r}; expected one of {', '.join(ARCHS)}, "
                f"or a dict with depths and dims"
            )
        return ARCHS[arch]
    known = [field.name for field in fields(Arch)]
    unknown = sorted(set(arch) - set(known))
    if unknown or not {"depths", "dims"} <= set(arch):
        raise ValueError(
            f"HireMLP: arch dict with {', '.join(sorted(arch))}; it needs depths and dims, "
            f"and takes {', '.join(known)}"
        )
    return Arch(**arch)


# The rearrangement ------------------------------------------------------------------------------


def zero_pad(x: Tensor, axis: int, front: int, back: int) -> Tensor:
    """Zeros before and after `x` along `axis`; a negative number takes entries away."""
    return F.pad(x, (0, 0) * (x.ndim - 1 - axis) + (front, back))


def shift_and_pad(
    x: Tensor, axis: int, region_size: int, shift: int, shift_padding: str, region_padding: str
) -> Tensor:
    """Shift tokens across regions, then fill the last region.

    The order is the reference's: shift by +`shift` first, so that the padding repeats the first
    tokens of the *shifted* map.

    Args:
        x: (B, H, W, C).
        axis: `HEIGHT` or `WIDTH`.
        region_size: the size along `axis` is rounded up to a multiple of this.
        shift: tokens to shift by.
        shift_padding: `circular` brings the last tokens to the front, `zero` zeros.
        region_padding: `circular`, `zero` or `replicate` (of the last token).

    Returns:
        The map with `axis` rounded up. On a map smaller than the shift or the padding, indices
        wrap as often as needed, where the reference stops.
    """
    size = x.shape[axis]
    padded = (size + region_size - 1) // region_size * region_size
    if torch.compiler.is_compiling():
        return gather_tokens(x, axis, region_size, padded, shift, shift_padding, region_padding)
    if shift_padding == region_padding == "circular":
        return circular_slice(x, axis, -shift, padded)
    if shift_padding == "circular":
        x = circular_slice(x, axis, -shift, size)
    else:
        moved = min(shift, size)
        x = zero_pad(x, axis, moved, -moved)
    if region_padding == "circular":
        return circular_slice(x, axis, 0, padded)
    if region_padding == "zero":
        return zero_pad(x, axis, 0, padded - size)
    last = x.narrow(axis, size - 1, 1)
    return torch.cat([x] + [last] * (padded - size), axis)


def gather_tokens(
    x: Tensor,
    axis: int,
    region_size: int,
    padded: int,
    shift: int,
    shift_padding: str,
    region_padding: str,
) -> Tensor:
    """What `shift_and_pad` gives, without a decision on the size: one graph serves all images.

    Args:
        padded: the size along `axis` of the result; the rest as in `shift_and_pad`.
    """
    size = x.shape[axis]
    place = torch.arange(padded, device=x.device)
    kept = place < (size if region_padding == "zero" else padded)
    if region_padding == "replicate":
        place = place.clamp(max=size - 1)
    elif region_padding == "circular":
        place = place % size
    place = place - shift
    if shift_padding == "zero":
        kept = kept & (place >= 0)
    back = (torch.arange(size, device=x.device) + shift) % size
    x = gather(x, axis, place % size, back, region_size - 1)
    if "zero" in (shift_padding, region_padding):
        x = x * kept.to(x.dtype).view((-1,) + (1,) * (x.ndim - 1 - axis))
    return x


def crop_and_unshift(x: Tensor, axis: int, shift: int, size: int) -> Tensor:
    """The first `size` tokens along `axis`, shifted back by `shift` circularly."""
    if torch.compiler.is_compiling():  # as in `gather_tokens`
        place = (torch.arange(size, device=x.device) + shift) % size
        back = (torch.arange(x.shape[axis], device=x.device) - shift) % size
        return gather(x, axis, place, back, 0)
    return circular_slice(x, axis, shift, size, size)


def unfold_regions(x: Tensor, axis: int, region_size: int, channels: int = 3) -> Tensor:
    """Channels back to tokens: (B, H / p, W, C * p) to (B, H, W, C), or the same along W.

    Channel `c * p + k` of a region is channel c of its token k.

    Args:
        channels: the axis of the channels; 1 for a map (B, C * p, H / p, W), whose H is axis 2.
    """
    # (B, H/p, W, C * p) -> (B, H/p, W, C, p) -> (B, H/p, p, W, C) -> (B, H, W, C)
    x = x.unflatten(channels, (-1, region_size)).movedim(channels + 1, axis + 1)
    return x.flatten(axis, axis + 1)


def channels_last(x: Tensor) -> Tensor:
    """(B, C, H, W) as (B, H, W, C), a view.

    Tokens are moved in this order, in which the channels of a token are neighbours in memory, so
    that copies and their gradients have them as neighbours, too.
    """
    return x.permute(0, 2, 3, 1)


def channels_first(x: Tensor) -> Tensor:
    """(B, H, W, C) as (B, C, H, W), a view."""
    return x.permute(0, 3, 1, 2)


# Modules ----------------------------------------------------------------------------------------


class RegionBranch(nn.Module):
    """MLP over the tokens of a region along one axis, all channels at once (paper v1, eq. 2, 3).

    The reference moves a region's p tokens into channels and applies a 1x1 convolution to the
    p * C channels. That is a convolution with a kernel and a stride of p along the axis, so
    `reduce` is one: no copy, and its weight is a view of the reference's.

    Args:
        dim: channels C.
        axis: `HEIGHT` or `WIDTH`.
        region_size: tokens per region, p.
        shift: cross-region shift in tokens; 0 for none.
        shift_padding, region_padding: see `shift_and_pad`.
        norm_layer: builds the norm of the C // 2 hidden channels.
    """

    def __init__(
        self,
        dim: int,
        axis: int,
        region_size: int,
        shift: int,
        shift_padding: str,
        region_padding: str,
        norm_layer: NormLayer,
    ) -> None:
        super().__init__()
        self.axis = axis
        self.region_size = region_size
        self.shift = shift
        self.shift_padding = shift_padding
        self.region_padding = region_padding
        kernel = (region_size, 1) if axis == HEIGHT else (1, region_size)
        self.reduce = nn.Conv2d(dim, dim // 2, kernel, stride=kernel, bias=False)
        self.norm = norm_layer(dim // 2)
        self.act = nn.ReLU(inplace=True)
        self.expand = nn.Conv2d(dim // 2, dim * region_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        size = x.shape[self.axis + 1]
        circular = self.shift_padding == self.region_padding == "circular"
        gradient = self.to_regions_gradient if circular else None
        x = conv_of(self.reduce, self.to_regions, x, gradient=gradient)
        x = self.expand(self.act(self.norm(x)))
        # As in the reference, a shift that brought in zeros is not undone.
        undone = self.shift if self.shift_padding == "circular" else 0
        if (
            torch.compiler.is_compiling()
        ):  # inductor lays maps out by itself, and fails on views of symbolic sizes
            x = unfold_regions(x, self.axis + 1, self.region_size, channels=1)
            return crop_and_unshift(x, self.axis + 1, undone, size)
        x = unfold_regions(channels_last(x), self.axis, self.region_size)
        return channels_first(crop_and_unshift(x, self.axis, undone, size))

    def to_regions(self, x: Tensor) -> Tensor:
        """(B, C, H, W) shifted, its regions full."""
        how = (self.region_size, self.shift, self.shift_padding, self.region_padding)
        if torch.compiler.is_compiling():
            return shift_and_pad(x, self.axis + 1, *how)
        return channels_first(shift_and_pad(channels_last(x), self.axis, *how))

    def to_regions_gradient(self, grad: Tensor, x: Tensor) -> list[Tensor]:
        """Of `to_regions`, for `conv_of`, where both paddings are circular."""
        x, grad = channels_last(x), channels_last(grad)
        how = (self.axis, -self.shift, grad.shape[self.axis], x.shape[self.axis])
        return [channels_first(circular_slice_gradient(grad, x.shape, *how))]

    def extra_repr(self) -> str:
        axis = "height" if self.axis == HEIGHT else "width"
        return f"axis={axis}, region_size={self.region_size}, shift={self.shift}"


class Mlp(nn.Module):
    """Two 1x1 convolutions with a GELU between them, behind a norm if one is given."""

    def __init__(self, dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden_dim, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden_dim, out_dim, 1)

    def forward(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        """(B, dim, H, W) to (B, out_dim, H, W)."""
        parts = self.parts(x)
        if parts == 1:
            hidden = self.fc1(x) if norm is None else conv_of_norm(self.fc1, norm, x)
            exact = type(self.act) is nn.GELU and self.act.approximate == "none"
            return conv_of(self.fc2, self.act, hidden, gradient=gelu_gradient if exact else None)
        x = x if norm is None else norm(x)
        axis = 0 if len(x) > 1 else 2  # rows of several images are no neighbours in memory
        length = -(-x.shape[axis] // parts)
        return torch.cat(
            [self.fc2(self.act(self.fc1(part))) for part in x.split(length, axis)], axis
        )

    def parts(self, x: Tensor) -> int:
        """In how many parts a map goes through, so that the hidden ones stay in a CPU's cache."""
        if (
            torch.is_grad_enabled()  # the hidden map is kept whole
            or x.device.type != "cpu"
            or torch.compiler.is_compiling()
            or torch._C._get_tracing_state() is not None
            or type(self.fc1) is not nn.Conv2d
            or any(map(is_hooked, (self.fc1, self.act, self.fc2)))
        ):
            return 1
        hidden_bytes = x.nbytes // x.shape[1] * self.fc1.out_channels
        parts = -(-hidden_bytes // HIDDEN_BYTES)
        return parts if parts > 2 else 1  # two gain nothing


class HireModule(nn.Module):
    """Token mixer: two region branches and a pointwise one, gated per image and channel.

    The gate (reference `reweight`; not in version 1 of the paper, which sums the branches) sees
    the mean of the branches' sum over the whole map, so every output pixel depends on every
    input pixel.
    """

    def __init__(
        self,
        dim: int,
        region_size: int,
        shift: int,
        shift_padding: str,
        region_padding: str,
        norm_layer: NormLayer,
    ) -> None:
        super().__init__()
        paddings = (shift_padding, region_padding)
        self.height = RegionBranch(dim, HEIGHT, region_size, shift, *paddings, norm_layer)
        self.width = RegionBranch(dim, WIDTH, region_size, shift, *paddings, norm_layer)
        self.channel = nn.Conv2d(dim, dim, 1)
        self.reweight = Mlp(dim, dim // 4, dim * 3)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        branches = (self.height(x), self.width(x), self.channel(x))
        means = [channels_last(branch).mean((1, 2)) for branch in branches]
        mean = torch.stack(means).sum(0)[..., None, None]
        # (B, 3C, 1, 1) -> (B, C, 3) -> (3, B, C, 1, 1): channel outer, branch inner
        gate = self.reweight(mean).reshape(x.shape[0], x.shape[1], 3).softmax(2)
        gates = gate.permute(2, 0, 1)[..., None, None]
        return conv_of(self.proj, weighted_sum, gates, *branches, gradient=weighted_sum_gradient)


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch for whole images, scales the others up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask = (torch.rand(x.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device) + keep).floor()
        return x / keep * mask

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class Block(nn.Module):
    """Pre-norm residual block: token mixer, then channel MLP (paper v1, eq. 1)."""

    def __init__(
        self, dim: int, mlp_ratio: float, drop_path: float, norm_layer: NormLayer, **mixer: object
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.token_mixer = HireModule(dim, norm_layer=norm_layer, **mixer)  # type: ignore[arg-type]
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        x = x + self.drop_path(self.token_mixer(self.norm1(x)))
        if type(self.mlp) is not Mlp or is_hooked(self.mlp):
            return x + self.drop_path(self.mlp(self.norm2(x)))
        return x + self.drop_path(self.mlp(x, self.norm2))


class ConvNormAct(nn.Module):
    """Convolution, norm, ReLU: the stem and the downsampling layers."""

    def __init__(
        self, in_dim: int, dim: int, kernel: int, stride: int, padding: int, norm_layer: NormLayer
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_dim, dim, kernel, stride, padding)
        self.norm = norm_layer(dim)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_dim, H, W) to (B, dim, H', W'), H' = (H + 2 padding - kernel) // stride + 1.

        An image too small for the kernel is filled up with zeros at its end until it fits once.
        """
        kernel, padding = self.proj.kernel_size[0], self.proj.padding[0]
        smallest = kernel - 2 * int(padding)
        if min(x.shape[2:]) < smallest:
            H, W = x.shape[2:]
            x = F.pad(x, (0, max(0, smallest - W), 0, max(0, smallest - H)))
        return self.act(self.norm(self.proj(x)))


class Stage(nn.Module):
    """Downsampling (identity in the first stage), then blocks at one resolution."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[Block], with_cp: bool) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C, ceil(H / 2), ceil(W / 2)); the first stage keeps H, W."""
        x = self.downsample(x)
        for block in self.blocks:
            x = recomputed(block, x) if self.with_cp and torch.is_grad_enabled() else block(x)
        return x


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """`block(x)`, whose activations are not kept but computed again in the backward pass."""

    @contextmanager
    def again() -> Iterator[None]:
        with plain_operations(), frozen_statistics(block):
            yield

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return plain_operations(), again()

    return checkpoint(block, x, use_reentrant=False, context_fn=contexts)


# The network ------------------------------------------------------------------------------------


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
        with_cp: recompute each block in the backward pass instead of keeping its activations.

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
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        self.arch = resolve_arch(arch)
        num_stages = len(self.arch.dims)
        self.out_indices = check_out_indices(out_indices, num_stages)
        check_choice("shift_padding", shift_padding, SHIFT_PADDINGS)
        check_choice("region_padding", region_padding, REGION_PADDINGS)
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f"HireMLP: drop_path_rate={drop_path_rate}; expected 0 <= rate < 1")
        dims = self.arch.dims
        self.out_channels = tuple(dims[i] for i in self.out_indices)
        self.strides = tuple(4 * 2**i for i in self.out_indices)

        self.stem = ConvNormAct(in_channels, dims[0], 7, 4, 2, norm_layer)
        last_block = max(1, sum(self.arch.depths) - 1)
        self.stages = nn.ModuleList()
        for i in range(self.out_indices[-1] + 1):
            blocks = [
                Block(
                    dims[i],
                    self.arch.mlp_ratios[i],
                    drop_path_rate * (sum(self.arch.depths[:i]) + j) / last_block,
                    norm_layer,
                    region_size=self.arch.region_sizes[i],
                    shift=self.arch.shift(i, j),
                    shift_padding=shift_padding,
                    region_padding=region_padding,
                )
                for j in range(self.arch.depths[i])
            ]
            downsample = ConvNormAct(dims[i - 1], dims[i], 3, 2, 1, norm_layer) if i else None
            self.stages.append(Stage(downsample or nn.Identity(), blocks, with_cp))
        for i in self.out_indices:
            self.add_module(f"norm{i}", norm_layer(dims[i]) if output_norm else nn.Identity())
        self.apply(init_module)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature pyramid of an image batch of any size.

        Args:
            x: (B, in_channels, H, W).

        Returns:
            For each of `out_indices`, (B, C_i, H_i, W_i): H_0 = max(1, (H + 1) // 4), then each
            stage halves, rounding up; the same for W.
        """
        plain = not is_channels_last(x)
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        outputs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                out = getattr(self, f"norm{i}")(x)
                outputs.append(out.contiguous() if plain else out)
        return tuple(outputs)


def is_channels_last(image: Tensor) -> bool:
    """Whether an image batch (B, C, H, W) lies in memory as (B, H, W, C), and only so."""
    last = image.is_contiguous(memory_format=torch.channels_last)
    return last and not image.is_contiguous()


def init_module(module: nn.Module) -> None:
    """The reference's `cls_init_weights`: trunc_normal of std 0.02, biases 0, norms 1 and 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, (_BatchNorm, nn.GroupNorm, nn.LayerNorm)) and module.weight is not None:
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def check_out_indices(out_indices: Sequence[int], num_stages: int) -> tuple[int, ...]:
    """`out_indices` as a tuple; ValueError unless ascending stage numbers, at least one."""
    indices = tuple(out_indices) if isinstance(out_indices, Sequence) else (out_indices,)
    stages = set(range(num_stages))
    if not indices or not set(indices) <= stages or list(indices) != sorted(set(indices)):
        raise ValueError(
            f"HireMLP: out_indices={out_indices}; expected ascending stages out of "
            f"0..{num_stages - 1}, such as (0, 1, 2, 3)"
        )
    return indices


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"HireMLP: {name}={value!r}; expected one of {', '.join(choices)}")
