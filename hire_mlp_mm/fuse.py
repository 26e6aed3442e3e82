"""The exact inference form of Hire-MLP: the same numbers in less time and memory.

`fuse(model)` gives a new network without BatchNorm, for evaluation only. What it does, and why it
is exact (docs/performance.md has what each part gains):

- Every BatchNorm is an affine map per channel, and goes into the weights beside it. Only the output
  norms stay, as a scale and a shift: the next stage reads the same map without them.
- The gate reads the mean of each branch. A branch is linear after its small hidden map, so its mean
  is a product of the hidden map's mean. So the gate is known before any branch is there, and goes
  into the weights that make them: branches are added up as they come, none is kept.
- On maps with many tokens the output weights `proj` go into the branches' weights, too, and the
  shortcut becomes an identity in the pointwise branch.
- Maps are (B, H, W, C): a 1x1 convolution is a matrix product.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from . import ops
from .hire_mlp import HEIGHT, WIDTH, Block, HireMLPNet, RegionBranch, Stage
from .ops import channels_first, tokens_first

# Tokens at a time in the channel MLP on a CPU, per thread: their hidden map stays in the cache.
CHUNK = 1024
ONEDNN_TOKENS = 2048  # from which on oneDNN is faster than what torch takes by itself


def fuse(model: nn.Module) -> nn.Module:
    """Make the exact inference form of a network, or of a model that holds one or several.

    The result equals `model.eval()` up to rounding, for images of any size. It stays in evaluation
    mode and needs no gradients. It runs in the type of its weights (`.bfloat16()`, `.half()`), and
    outputs have the type of the image; under autocast both are autocast's type, as they are without
    this form (see `FusedHireMLP.in_type`). Outputs have the memory format of the image.

    Args:
        model: a `HireMLP`, or a detector, segmentor or classifier with such backbones.

    Returns:
        A new network, or a copy of the model with its backbones replaced; the model is left as is.

    Raises:
        ValueError: no HireMLP in the model, a norm other than BatchNorm, or zero padding, whose
            zeros stand behind the first norm, so that it cannot be folded.
    """
    networks = {name: m for name, m in model.named_modules() if isinstance(m, HireMLPNet)}
    if not networks:
        raise ValueError(
            f"fuse: no HireMLP in {type(model).__name__}; expected the backbone or a model with one"
        )
    for name, network in networks.items():
        check_fusable(network, name)
    # deepcopy takes what the memo holds for a copy.
    memo = {id(network): FusedHireMLP(network) for network in networks.values()}
    return copy.deepcopy(model, memo).eval()


def check_fusable(network: HireMLPNet, prefix: str) -> None:
    """Raise ValueError that names the first norm or padding that cannot be folded."""
    for name, module in network.named_modules():
        path = f"{prefix}.{name}".lstrip(".")
        for kind in ("shift_padding", "region_padding"):
            if getattr(module, kind, None) == "zero":
                raise ValueError(
                    f"fuse: {path} has {kind}='zero'; only circular and replicate padding can be "
                    f"fused: use the network as it is"
                )
        is_norm = name.rpartition(".")[2].startswith("norm")
        foldable = isinstance(module, _BatchNorm) and module.running_mean is not None
        is_no_output_norm = isinstance(module, nn.Identity) and "." not in name
        if is_norm and not foldable and not is_no_output_norm:
            raise ValueError(
                f"fuse: {path} is {type(module).__name__}; only BatchNorm with running "
                f"statistics can be folded: use the network as it is"
            )


# Folding, in float64 ----------------------------------------------------------------------------


def scale_and_shift(norm: Any) -> tuple[Tensor, Tensor]:
    """Turn a BatchNorm in evaluation mode into `x * scale + shift`, each (C,)."""
    mean, variance, weight, bias = (
        value if value is None else value.detach().double()
        for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    scale = (variance + norm.eps).rsqrt() * (1 if weight is None else weight)
    return scale, (0 if bias is None else bias) - mean * scale


def weight_and_bias(layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution; a missing bias is zeros."""
    weight = layer.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()
    return weight, bias


def fold_before(norm: nn.Module, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Fold a norm into the weight (out, C, ...) and bias of the layer that reads its output."""
    scale, shift = scale_and_shift(norm)
    shape = (1, -1) + (1,) * (weight.ndim - 2)
    return weight * scale.view(shape), bias + (weight * shift.view(shape)).flatten(1).sum(1)


def fold_after(norm: nn.Module, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Fold a norm into the weight (C, ...) and bias of the layer whose output it reads."""
    scale, shift = scale_and_shift(norm)
    return weight * scale.view((-1,) + (1,) * (weight.ndim - 1)), bias * scale + shift


def constant(value: Tensor, like: Tensor) -> nn.Parameter:
    """Hold a folded weight in the type of the network that it comes from."""
    return nn.Parameter(value.to(like.dtype, copy=True), requires_grad=False)


# Products ---------------------------------------------------------------------------------------


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, act: str = "", add: Tensor | None = None
) -> Tensor:
    """Compute `act(x @ weight.T + bias)`, or the product plus `add`.

    Torch takes MKL for a float32 product on a CPU. OneDNN adds and activates on the way, and was
    the faster one on many tokens (on a CPU of AMD).

    Args:
        x, weight, bias: (..., K), (N, K), (N,).
        act: nothing, `relu` or `gelu`; not together with `add`.
        add: (..., N).
    """
    if has_onednn(x):
        op = torch.ops.mkldnn._linear_pointwise
        if add is not None:
            return op.binary(x, add, weight, bias, "add")
        return op(x, weight, bias, act or "none", [], "none" if act == "gelu" else "")
    out = F.linear(x, weight, bias)
    if act:
        out = getattr(torch.ops.aten, f"{act}_")(out)
    return out if add is None else out.add_(add)


def has_onednn(x: Tensor) -> bool:
    """Tell whether oneDNN can make a product of `x`, (..., K), that has many tokens."""
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.requires_grad:
        return False
    onednn = torch.backends.mkldnn
    if not (onednn.is_available() and onednn.enabled) or x.numel() < ONEDNN_TOKENS * x.shape[-1]:
        return False
    bfloat16 = x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return bfloat16 or x.dtype == torch.float32


def batch_linear(x: Tensor, weight: Tensor, start: Tensor) -> Tensor:
    """Compute `start + x @ weight.T`, every image with its own weight.

    Args:
        x, weight: (B, M, K), (B, N, K).
        start: a bias (B, 1, N), or (B, M, N).
    """
    if not has_onednn(x) or len(x) > 1:
        return torch.baddbmm(start, x, weight.mT)
    if start.shape[1] == 1:
        return linear(x[0], weight[0], start[0, 0])[None]
    return linear(x[0], weight[0], add=start[0])[None]


def mean_of(x: Tensor) -> Tensor:
    """Average a map (B, H, W, C): (B, C); on a CPU by a product, of which bfloat16 gains most."""
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype == torch.float16:
        return x.mean((1, 2))
    tokens = x.flatten(1, 2)
    ones = tokens.new_ones(len(tokens), 1, tokens.shape[1])
    return torch.bmm(ones, tokens)[:, 0] / tokens.shape[1]


# Modules: maps are (B, H, W, C) -----------------------------------------------------------------


def fuse_conv(layer: Any) -> Any:
    """Copy the stem or a downsampling layer, with its norm in the convolution."""
    fused = copy.deepcopy(layer)
    if isinstance(layer, nn.Identity):
        return fused
    weight, bias = fold_after(layer.norm, *weight_and_bias(layer.proj))
    weight = weight.contiguous(memory_format=torch.channels_last)
    fused.proj.weight = constant(weight, layer.proj.weight)
    fused.proj.bias = constant(bias, layer.proj.weight)
    fused.norm = nn.Identity()
    return fused


class FusedBranch(nn.Module):
    """Region branch in two halves: from the map to its hidden regions, and from those to the map.

    Attributes:
        weight: (C // 2, p * C), with the block's norm and the hidden one; bias: (C // 2,).
        expand_weight: (p, C, C // 2), for each token of a region.
        expand_bias: (p, C).
    """

    def __init__(self, branch: RegionBranch, norm: nn.Module) -> None:
        super().__init__()
        like = branch.reduce.weight
        weight, bias = fold_after(branch.norm, *fold_before(norm, *weight_and_bias(branch.reduce)))
        # (C // 2, C, p, 1) or (C // 2, C, 1, p) -> (C // 2, p * C)
        self.weight = constant(weight.flatten(2).transpose(1, 2).flatten(1), like)
        self.bias = constant(bias, like)
        # (C * p, C // 2, 1, 1) -> (p, C, C // 2)
        p = branch.region_size
        weight, bias = weight_and_bias(branch.expand)
        dim = len(weight) // p
        self.expand_weight = constant(
            weight.view(dim, p, dim // 2).transpose(0, 1).contiguous(), like
        )
        self.expand_bias = constant(bias.view(dim, p).t().contiguous(), like)
        self.axis, self.region_size, self.shift = branch.axis, p, branch.shift
        self.region_padding = branch.region_padding

    def hidden(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the hidden regions (B, ceil(H / p), W, C // 2), or along W."""
        B, H, W, C = x.shape
        p, paddings = self.region_size, ("circular", self.region_padding)
        x = tokens_first(ops.shift(channels_first(x), self.axis, self.shift, p, *paddings))
        if self.axis == HEIGHT:
            # (B, H', p, W, C) -> (B, H', W, p * C)
            x = x.view(B, -1, p, W, C).transpose(2, 3).reshape(B, -1, W, p * C)
        else:
            x = x.reshape(B, H, -1, p * C)
        return linear(x, self.weight, self.bias, act="relu")

    def tokens(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Turn hidden regions into the shifted map; weight (B, p, C, C // 2), bias (B, p, C)."""
        B, H, W, _ = hidden.shape
        p, C = weight.shape[1:3]
        x = batch_linear(hidden.flatten(1, 2), weight.flatten(1, 2), bias.view(B, 1, p * C))
        # (B, H * W, p * C) -> (B, H, W, p, C), where H or W counts regions
        x = x.view(B, H, W, p, C)
        x = x.transpose(2, 3).reshape(B, H * p, W, C) if self.axis == HEIGHT else x.flatten(2, 3)
        return channels_first(x)

    def hidden_means(self, hidden: Tensor, size: int) -> Tensor:
        """Sum hidden regions whose token k lies in the map, over its size: (B, p, C // 2 + 1).

        The branch's mean is a product of these p sums; the last entry of each, which stands for
        the bias, sums ones. The last region may reach beyond the map's `size` along the axis.
        """
        axis, p = self.axis - 1, self.region_size
        regions = hidden.shape[axis]
        mean = F.pad(mean_of(hidden), (0, 1), value=1.0)[:, None] * (regions / size)
        last = F.pad(hidden.select(axis, regions - 1).mean(1), (0, 1), value=1.0)[:, None] / size
        beyond = torch.arange(p, device=hidden.device) >= size - (regions - 1) * p
        return mean - last * beyond[:, None]


class FusedBlock(nn.Module):
    """Token mixer and channel MLP with their residuals."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        mixer, mlp = block.token_mixer, block.mlp
        like = mixer.proj.weight

        def matrix(weight: Tensor, bias: Tensor) -> tuple[nn.Parameter, nn.Parameter]:
            return constant(weight.flatten(1), like), constant(bias, like)

        self.height = FusedBranch(mixer.height, block.norm1)
        self.width = FusedBranch(mixer.width, block.norm1)
        weight, bias = fold_before(block.norm1, *weight_and_bias(mixer.channel))
        self.channel, self.channel_bias = matrix(weight, bias)
        # The gate's first layer reads means of the branches, which are products of means of what
        # the branches read: (dim // 4, C), and (dim // 4, p * (C // 2 + 1)) twice
        first, first_bias = weight_and_bias(mixer.reweight.fc1)
        first = first.flatten(1)
        means = [first @ weight.flatten(1)]
        for branch in (mixer.height, mixer.width):
            expand, expand_bias = weight_and_bias(branch.expand)
            # (C * p, C // 2, 1, 1) and (C * p,) -> (C, p * (C // 2 + 1))
            both = torch.cat([expand.flatten(1), expand_bias[:, None]], 1)
            means.append(first @ both.view(len(both) // branch.region_size, -1))
        self.gate1, self.gate1_bias = matrix(torch.cat(means, 1), first @ bias + first_bias)
        # Channel outer, branch inner -> branch outer
        weight, bias = weight_and_bias(mixer.reweight.fc2)
        order = torch.arange(len(bias), device=bias.device).view(-1, 3).t().flatten()
        self.gate2, self.gate2_bias = matrix(weight[order], bias[order])

        # The mixer's products have a bias anyway, so it adds the MLP's last bias in advance, and
        # the MLP's first one takes that back.
        weight1, bias1 = fold_before(block.norm2, *weight_and_bias(mlp.fc1))
        weight2, bias2 = weight_and_bias(mlp.fc2)
        weight, bias = weight_and_bias(mixer.proj)
        self.proj, self.proj_bias = matrix(weight, bias + bias2)
        self.fc1, self.fc1_bias = matrix(weight1, bias1 - weight1.flatten(1) @ bias2)
        self.fc2 = constant(weight2.flatten(1), like)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return channels_first(self.add_mlp_(self.mix(tokens_first(x).contiguous())))

    def mix(self, x: Tensor) -> Tensor:
        """Return `x`, (B, H, W, C), plus its token mixer and the bias that `add_mlp_` leaves out.

        The gate goes into the weights of the branches, image by image, and so does `proj` where
        that pays.
        """
        B, H, W, C = x.shape
        height, width = self.height.hidden(x), self.width.hidden(x)
        gate = self.gate(x, height, width)
        if self.folds_proj(H * W):
            # (C, C) and (B, 3, 1, C) -> (B, 3, C, C)
            proj = self.proj * gate[:, :, None]
            identity = torch.eye(C, dtype=x.dtype, device=x.device)
            pointwise = torch.baddbmm(identity, proj[:, 2], self.channel.expand(B, C, C))
            to_height = proj[:, :1] @ self.height.expand_weight
            to_width = proj[:, 1:2] @ self.width.expand_weight
            # (B, p, C)
            height_bias = self.height.expand_bias @ proj[:, 0].mT
            width_bias = self.width.expand_bias @ proj[:, 1].mT
            bias = linear(gate[:, 2] * self.channel_bias, self.proj, self.proj_bias)
        else:
            # (B, 1, C) each
            gates = gate[:, :, None].unbind(1)
            pointwise = gates[2].mT * self.channel
            to_height = gates[0][..., None] * self.height.expand_weight
            to_width = gates[1][..., None] * self.width.expand_weight
            height_bias = gates[0] * self.height.expand_bias
            width_bias = gates[1] * self.width.expand_bias
            bias = gate[:, 2] * self.channel_bias
        width_bias = width_bias + bias[:, None]

        out = self.width.tokens(width, to_width, width_bias)
        out = tokens_first(ops.unshift(out, WIDTH, self.width.shift, W)).reshape(B, H * W, C)
        out = channels_first(batch_linear(x.view(B, H * W, C), pointwise, out).view(B, H, W, C))
        by_height = self.height.tokens(height, to_height, height_bias)
        out = tokens_first(ops.add_unshifted(out, by_height, HEIGHT, self.height.shift))
        return out if self.folds_proj(H * W) else linear(out, self.proj, self.proj_bias, add=x)

    def gate(self, x: Tensor, height: Tensor, width: Tensor) -> Tensor:
        """Weigh the branches by means of `x`, (B, H, W, C), and of hidden regions: (B, 3, C)."""
        B, H, W, C = x.shape
        by_height = self.height.hidden_means(height, H).flatten(1)
        by_width = self.width.hidden_means(width, W).flatten(1)
        means = torch.cat([mean_of(x), by_height, by_width], 1)
        gate = F.gelu(linear(means, self.gate1, self.gate1_bias))
        gate = linear(gate, self.gate2, self.gate2_bias)
        # (B, 3 * C) -> (B, 3, C)
        return gate.view(B, 3, C).softmax(1)

    def folds_proj(self, tokens: int) -> bool:
        """Tell whether `proj` goes into the branches' weights, image by image.

        It costs p + 1 products of C x C matrices an image, and saves a product of such a matrix
        with a vector for each token.
        """
        dim, p = len(self.proj), self.height.region_size
        if torch.compiler.is_compiling():  # no branch on the size
            return dim < 256
        return tokens > dim * (p + 1)

    def add_mlp_(self, x: Tensor) -> Tensor:
        """Add the channel MLP of `x` to `x`, (B, H, W, C), in place."""
        tokens = x.view(-1, x.shape[3])
        whole = x.device.type != "cpu" or torch.compiler.is_compiling()
        for chunk in [tokens] if whole else tokens.split(CHUNK * torch.get_num_threads()):
            hidden = linear(chunk, self.fc1, self.fc1_bias, act="gelu")
            chunk.add_(linear(hidden, self.fc2))
        return x


class ScaleShift(nn.Module):
    """Scale and shift channels of (B, C, H, W), as a BatchNorm does in evaluation mode."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        scale, shift = scale_and_shift(norm)
        self.scale = constant(scale.view(-1, 1, 1), norm.running_mean)
        self.shift = constant(shift.view(-1, 1, 1), norm.running_mean)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale)


class FusedHireMLP(nn.Module):
    """Give the pyramid of a `HireMLPNet` for an image, in evaluation mode only (see `fuse`).

    Attributes:
        arch, out_indices, out_channels, strides: as in `HireMLPNet`.
        copies: this network in other types, for autocast.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.copies: dict[tuple[torch.dtype, torch.device], FusedHireMLP] = {}
        self.register_load_state_dict_post_hook(forget_copies)
        self.arch, self.out_indices = network.arch, network.out_indices
        self.out_channels, self.strides = network.out_channels, network.strides
        self.stem = fuse_conv(network.stem)
        self.stages = nn.ModuleList(
            Stage(fuse_conv(stage.downsample), map(FusedBlock, stage.blocks))
            for stage in network.stages
        )
        for i in self.out_indices:
            norm = getattr(network, f"norm{i}")
            identity = isinstance(norm, nn.Identity)
            self.add_module(f"norm{i}", nn.Identity() if identity else ScaleShift(norm))
        self.eval()

    def train(self, mode: bool = True) -> FusedHireMLP:
        """Stay in evaluation mode, as a frozen backbone does."""
        return super().train(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the pyramid of an image batch; see `HireMLPNet.forward`."""
        device = x.device.type
        if not torch.is_autocast_enabled(device):
            return self.pyramid(x, x.dtype)
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return self.in_type(dtype).pyramid(x, dtype)

    def pyramid(self, image: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Compute the pyramid in the type of the weights; return it in `dtype`."""
        x = ops.check_image(image, self.stem.proj.in_channels).to(self.stem.proj.weight.dtype)
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        outputs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                out = getattr(self, f"norm{i}")(x).to(dtype)
                outputs.append(ops.lay_out_like(out, image))
        return tuple(outputs)

    def in_type(self, dtype: torch.dtype) -> FusedHireMLP:
        """Return this network with weights in `dtype`: itself, or a copy that is kept.

        The copy is made when it is first asked for, which costs the memory of its weights; that of
        the others is saved by `.to(dtype)`. It is made anew after `load_state_dict` and on another
        device, and is neither saved nor copied along. Weights changed in place it does not see.
        """
        weight = self.stem.proj.weight
        if dtype == weight.dtype:
            return self
        key = dtype, weight.device
        if key not in self.copies:
            self.copies[key] = copy.deepcopy(self).to(dtype)
        return self.copies[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "copies": {}}


def forget_copies(network: FusedHireMLP, _: Any) -> None:
    """Drop the copies in other types, of weights that are no more."""
    network.copies.clear()
