"""The exact inference form of Hire-MLP: the same numbers in less time and memory.

`fuse(model)` gives a new network without BatchNorm, for evaluation only. What it does, and why it
is exact:

- Every BatchNorm is an affine map per channel, and goes into the weights beside it. Only the output
  norms stay, as a scale and a shift: the next stage reads the same map without them.
- The gate needs the mean of each branch. A branch is linear after its small hidden map, so its mean
  is that of the hidden tokens, expanded. The gate is known before any full-size branch is there,
  and goes into the weights that make them: branches are added up as they come, none is kept.
- On maps with many tokens the output weights `proj` go into the branches' weights, too, and the
  residual path becomes an identity in the pointwise branch: a block makes one full-size map, then
  adds to it in place.
- Maps are (B, H, W, C): a 1x1 convolution is a matrix product, tokens of a region are neighbours.

Only torch is imported here, and the network.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from .hire_mlp import (
    HEIGHT,
    Block,
    ConvNormAct,
    HireMLPNet,
    RegionBranch,
    Stage,
    circular_slice,
    shift_and_pad,
)

# Tokens at a time in the channel MLP on a CPU, per thread: their hidden map stays in the cache.
CHUNK = 1024


def fuse(model: nn.Module) -> nn.Module:
    """The exact inference form of a network, or of a model that holds one or several.

    Equal to `model.eval()` up to rounding, for images of any size. It has no BatchNorm, stays in
    evaluation mode whatever `train()` says, and its weights need no gradients. It runs in the type
    of its weights (`.bfloat16()`, `.half()`), autocast or not; outputs have the type and the memory
    format of the image.

    Args:
        model: a `HireMLP`, or a detector, segmentor or classifier with such backbones.

    Returns:
        A new network, or a copy of the model in evaluation mode with its backbones replaced. The
        model is left as it is.

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
    """ValueError that names the first norm or padding that cannot be folded."""
    for name, module in network.named_modules(prefix=prefix):
        last = name.rpartition(".")[2]
        if isinstance(module, RegionBranch):
            paddings = dict(shift=module.shift_padding, region=module.region_padding)
            for kind, padding in paddings.items():
                if padding == "zero":
                    raise ValueError(
                        f"fuse: {name} has {kind}_padding='zero'; only circular and replicate "
                        f"padding can be fused: use the network as it is"
                    )
        elif last.startswith("norm") and not is_foldable(module):
            raise ValueError(
                f"fuse: {name} is {type(module).__name__}; only BatchNorm with running "
                f"statistics can be folded: use the network as it is"
            )


def is_foldable(norm: nn.Module) -> bool:
    """Whether a norm is an affine map in evaluation mode, or none at all."""
    if isinstance(norm, _BatchNorm):
        return norm.running_mean is not None
    return isinstance(norm, nn.Identity)


# Folding, in float64 ----------------------------------------------------------------------------


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """A BatchNorm in evaluation mode as `x * scale + shift`, each (C,)."""
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return scale, shift


def affine(layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution; a missing bias is zeros."""
    weight = layer.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()
    return weight, bias


def fold_before(norm: nn.Module, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (out, C, ...) and bias of a layer that reads a norm's output."""
    scale, shift = scale_and_shift(norm)
    shape = (1, -1) + (1,) * (weight.ndim - 2)
    return weight * scale.view(shape), bias + (weight * shift.view(shape)).flatten(1).sum(1)


def fold_after(norm: nn.Module, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (C, ...) and bias of a layer that a norm reads."""
    scale, shift = scale_and_shift(norm)
    return weight * scale.view((-1,) + (1,) * (weight.ndim - 1)), bias * scale + shift


def constant(value: Tensor, like: Tensor) -> nn.Parameter:
    """A folded weight in the type of the network that it comes from."""
    return nn.Parameter(value.to(like.dtype, copy=True), requires_grad=False)


# Modules: maps are (B, H, W, C) -----------------------------------------------------------------


class FusedConv(ConvNormAct):
    """Convolution and ReLU: the stem and the downsampling layers, on (B, C, H, W)."""

    def __init__(self, layer: ConvNormAct) -> None:
        nn.Module.__init__(self)
        self.proj = copy.deepcopy(layer.proj)
        weight, bias = fold_after(layer.norm, *affine(layer.proj))
        weight = weight.contiguous(memory_format=torch.channels_last)
        self.proj.weight = constant(weight, layer.proj.weight)
        self.proj.bias = constant(bias, layer.proj.weight)
        self.norm = nn.Identity()
        self.act = nn.ReLU(inplace=True)


class FusedBranch(nn.Module):
    """Region branch: from the map to its hidden tokens, and from those to the branch's mean.

    Attributes:
        weight, bias: of the reduction, with the block's norm and the hidden one.
        expand: (p, C, C // 2), the weight of each token of a region.
        expand_bias: (p, C).
    """

    def __init__(self, branch: RegionBranch, norm: nn.Module) -> None:
        super().__init__()
        like = branch.reduce.weight
        weight, bias = fold_after(branch.norm, *fold_before(norm, *affine(branch.reduce)))
        self.weight = constant(weight.contiguous(memory_format=torch.channels_last), like)
        self.bias = constant(bias, like)
        # (C * p, C // 2, 1, 1) -> (p, C, C // 2)
        p = branch.region_size
        weight, bias = affine(branch.expand)
        dim = len(weight) // p
        self.expand = constant(weight.view(dim, p, dim // 2).transpose(0, 1).contiguous(), like)
        self.expand_bias = constant(bias.view(dim, p).t().contiguous(), like)
        self.axis = branch.axis - 1
        self.stride = branch.reduce.stride
        self.region_size = p
        self.shift = branch.shift
        self.region_padding = branch.region_padding

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the hidden tokens (B, H / p, W, C // 2), or along W, rounded up."""
        size, p = x.shape[self.axis], self.region_size
        if torch.compiler.is_compiling():
            # Without a branch on the size, so that one compiled network serves all.
            place = torch.arange((size + p - 1) // p * p, device=x.device)
            if self.region_padding == "replicate":
                place = place.clamp(max=size - 1)
            x = x.index_select(self.axis, (place - self.shift) % size)
        else:
            x = shift_and_pad(x, self.axis, p, self.shift, "circular", self.region_padding)
        x = F.conv2d(x.permute(0, 3, 1, 2), self.weight, self.bias, self.stride)
        return x.relu_().permute(0, 2, 3, 1)

    def mean(self, hidden: Tensor, size: int) -> Tensor:
        """Mean of the branch over the map, (B, C), from its hidden tokens.

        Args:
            hidden: (B, H', W', C // 2).
            size: of the map along the axis. The last region may reach beyond it.
        """
        regions, p = hidden.shape[self.axis], self.region_size
        last = hidden.select(self.axis, regions - 1)
        means = torch.stack([hidden.mean((1, 2)), last.mean(1)], 1)
        # (B, 2, p * C) -> (B, 2, p, C): the means of token k over all regions, and in the last
        tokens = F.linear(means, self.expand.flatten(0, 1), self.expand_bias.flatten())
        tokens = tokens.unflatten(2, (p, -1))
        beyond = torch.arange(p, device=hidden.device) >= size - (regions - 1) * p
        return (tokens[:, 0] * regions - tokens[:, 1] * beyond[:, None]).sum(1) / size

    def tokens(self, hidden: Tensor) -> Tensor:
        """Hidden tokens (B, H', W', C // 2) expanded to (B, H', W', p * C), token by token."""
        return F.linear(hidden, self.expand.flatten(0, 1), self.expand_bias.flatten())

    def unfold(self, x: Tensor) -> Tensor:
        """Along the height, (B, H', W, p * C) to (B, H' * p, W, C)."""
        B, regions, W, channels = x.shape
        p = self.region_size
        # (B, H', W, p, C) -> (B, H', p, W, C)
        x = x.view(B, regions, W, p, channels // p).transpose(2, 3)
        return x.reshape(B, regions * p, W, channels // p)

    def restore(self, x: Tensor, size: int) -> Tensor:
        """Crop the padding of the last region and undo the shift."""
        if torch.compiler.is_compiling():
            place = torch.arange(size, device=x.device)
            return x.index_select(self.axis, (place + self.shift) % size)
        return circular_slice(x.narrow(self.axis, 0, size), self.axis, self.shift, size)

    def add_rows_(self, out: Tensor, rows: Tensor, k: int) -> None:
        """Add token k of every region along the height: `unfold` and `restore` without a copy.

        Args:
            out: (B, H, W, C).
            rows: (B, H', W, C); row r belongs at p * r + k of the shifted map.
            k: from 0 to p - 1.
        """
        size, p = out.shape[1], self.region_size
        shift = self.shift % size
        count = max(0, -(-(size - k) // p))
        wrapped = min(count, max(0, -(-(shift - k) // p)))
        if wrapped:
            out[:, k - shift + size :: p].add_(rows[:, :wrapped])
        if count > wrapped:
            start = k + p * wrapped - shift
            out[:, start : start + p * (count - wrapped) : p].add_(rows[:, wrapped:count])

    def extra_repr(self) -> str:
        axis = "height" if self.axis == HEIGHT - 1 else "width"
        return f"axis={axis}, region_size={self.region_size}, shift={self.shift}"


class FusedBlock(nn.Module):
    """Token mixer and channel MLP with their residuals; its input is overwritten."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        mixer, mlp = block.token_mixer, block.mlp
        like = mixer.proj.weight

        def matrix(weight: Tensor, bias: Tensor) -> tuple[nn.Parameter, nn.Parameter]:
            return constant(weight.flatten(1), like), constant(bias, like)

        self.height = FusedBranch(mixer.height, block.norm1)
        self.width = FusedBranch(mixer.width, block.norm1)
        self.channel, self.channel_bias = matrix(*fold_before(block.norm1, *affine(mixer.channel)))
        self.reweight1, self.reweight1_bias = matrix(*affine(mixer.reweight.fc1))
        # Channel outer, branch inner -> branch outer
        weight, bias = affine(mixer.reweight.fc2)
        order = torch.arange(len(bias), device=bias.device).view(-1, 3).t().flatten()
        self.reweight2, self.reweight2_bias = matrix(weight[order], bias[order])

        # Biases cost nothing in the mixer, whose products have one anyway, so that it adds the
        # MLP's last bias in advance, and the MLP's first takes that back.
        weight1, bias1 = fold_before(block.norm2, *affine(mlp.fc1))
        weight2, bias2 = affine(mlp.fc2)
        weight, bias = affine(mixer.proj)
        self.proj, self.proj_bias = matrix(weight, bias + bias2)
        self.fc1, self.fc1_bias = matrix(weight1, bias1 - weight1.flatten(1) @ bias2)
        self.fc2 = constant(weight2.flatten(1), like)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C), contiguous, to the same shape."""
        return self.add_mlp_(self.mix(x))

    def mix(self, x: Tensor) -> Tensor:
        """`x` plus the token mixer of `x`, and the bias that `add_mlp_` leaves out."""
        B, H, W, C = x.shape
        height, width = self.height(x), self.width(x)
        mean = self.height.mean(height, H) + self.width.mean(width, W)
        mean = mean + F.linear(x.mean((1, 2)), self.channel, self.channel_bias)
        gate = F.gelu(F.linear(mean, self.reweight1, self.reweight1_bias))
        gate = F.linear(gate, self.reweight2, self.reweight2_bias)
        # (B, 3 * C) -> (B, 3, C)
        gate = gate.view(B, 3, C).softmax(1)
        if self.folds_proj(H * W):
            return self.weigh_and_add(x, height, width, gate)
        return self.add_and_project(x, height, width, gate)

    def folds_proj(self, tokens: int) -> bool:
        """Whether `proj` goes into the branches' weights, image by image.

        That costs p + 1 products of C x C matrices an image, and saves one for each token.
        """
        dim, p = len(self.proj), self.height.region_size
        if torch.compiler.is_compiling():  # no branch on the size
            return dim < 256
        return tokens > dim * (p + 1)

    def weigh_and_add(self, x: Tensor, height: Tensor, width: Tensor, gate: Tensor) -> Tensor:
        """The gated branches behind `proj`, plus `x`: gate and `proj` go into weights first.

        Args:
            x: (B, H, W, C).
            height, width: hidden tokens of the region branches.
            gate: (B, 3, C).
        """
        B, H, W, C = x.shape
        p = self.height.region_size
        # (C, C) and (B, 3, 1, C) -> (B, 3, C, C), then (B, p, C, C // 2) and (B, C, C)
        proj = self.proj * gate[:, :, None]
        to_height = proj[:, :1] @ self.height.expand
        to_width = proj[:, 1:2] @ self.width.expand
        identity = torch.eye(C, dtype=x.dtype, device=x.device)
        pointwise = torch.baddbmm(identity, proj[:, 2], self.channel.expand(B, C, C))
        # (B, p, C)
        height_bias = self.height.expand_bias @ proj[:, 0].mT
        bias = F.linear(gate[:, 2] * self.channel_bias, self.proj, self.proj_bias)
        bias = self.width.expand_bias @ proj[:, 1].mT + bias[:, None]

        # (B, H * W', p * C) -> (B, H, W' * p, C)
        out = torch.baddbmm(bias.view(B, 1, -1), width.flatten(1, 2), to_width.flatten(1, 2).mT)
        out = self.width.restore(out.view(B, H, width.shape[2] * p, C), W).contiguous()
        out.view(B, H * W, C).baddbmm_(x.view(B, H * W, C), pointwise.mT)
        tokens = height.flatten(1, 2)
        if torch.compiler.is_compiling():
            weight = to_height.flatten(1, 2).mT
            rows = torch.baddbmm(height_bias.view(B, 1, -1), tokens, weight)
            return out + self.height.restore(
                self.height.unfold(rows.view(B, height.shape[1], W, p * C)), H
            )
        for k in range(p):
            rows = torch.baddbmm(height_bias[:, k : k + 1], tokens, to_height[:, k].mT)
            self.height.add_rows_(out, rows.view(B, height.shape[1], W, C), k)
        return out

    def add_and_project(self, x: Tensor, height: Tensor, width: Tensor, gate: Tensor) -> Tensor:
        """The same in the plain order, for maps with few tokens."""
        W, C = x.shape[2:]
        by_height, by_width, by_channel = gate[:, :, None, None].unbind(1)
        # (B, H, W', p * C) -> (B, H, W' * p, C)
        out = self.width.tokens(width).unflatten(3, (-1, C)).flatten(2, 3)
        out = self.width.restore(out, W) * by_width
        rows = self.height.restore(self.height.unfold(self.height.tokens(height)), x.shape[1])
        out.addcmul_(rows, by_height)
        out.addcmul_(F.linear(x, self.channel, self.channel_bias), by_channel)
        return F.linear(out, self.proj, self.proj_bias).add_(x)

    def add_mlp_(self, x: Tensor) -> Tensor:
        """`x` plus the channel MLP of `x`, in place."""
        tokens = x.view(-1, x.shape[3])
        chunks: tuple[Tensor, ...] = (tokens,)
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            chunks = tokens.split(CHUNK * torch.get_num_threads())
        for chunk in chunks:
            hidden = torch.ops.aten.gelu_(F.linear(chunk, self.fc1, self.fc1_bias))
            chunk.addmm_(hidden, self.fc2.t())
        return x


class FusedStage(nn.Module):
    """Downsampling, then blocks at one resolution."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        first = stage.downsample
        self.downsample = FusedConv(first) if isinstance(first, ConvNormAct) else nn.Identity()
        self.blocks = nn.ModuleList(
            FusedBlock(block) for block in stage.blocks if isinstance(block, Block)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C, ceil(H / 2), ceil(W / 2)), in channels_last."""
        x = self.downsample(x).permute(0, 2, 3, 1).contiguous()
        for block in self.blocks:
            x = block(x)
        return x.permute(0, 3, 1, 2)


class ScaleShift(nn.Module):
    """What a BatchNorm does in evaluation mode, on (B, C, H, W)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        scale, shift = scale_and_shift(norm)
        like = norm.running_mean
        assert isinstance(like, Tensor)
        self.scale = constant(scale.view(-1, 1, 1), like)
        self.shift = constant(shift.view(-1, 1, 1), like)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale)


class FusedHireMLP(nn.Module):
    """What `fuse` makes of a `HireMLPNet`: the same pyramid for an image, in evaluation mode only.

    Attributes:
        arch, out_indices, out_channels, strides: as in `HireMLPNet`.
    """

    def __init__(self, network: HireMLPNet) -> None:
        super().__init__()
        self.arch = network.arch
        self.out_indices = network.out_indices
        self.out_channels = network.out_channels
        self.strides = network.strides
        self.stem = FusedConv(network.stem)
        self.stages = nn.ModuleList(
            FusedStage(stage) for stage in network.stages if isinstance(stage, Stage)
        )
        for i in self.out_indices:
            norm = getattr(network, f"norm{i}")
            self.add_module(
                f"norm{i}", nn.Identity() if isinstance(norm, nn.Identity) else ScaleShift(norm)
            )
        self.eval()

    def train(self, mode: bool = True) -> FusedHireMLP:
        """Stays in evaluation mode, as a frozen backbone does."""
        return super().train(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature pyramid of an image batch (B, in_channels, H, W); see `HireMLPNet.forward`."""
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self.pyramid(x)
        return self.pyramid(x)

    def pyramid(self, image: Tensor) -> tuple[Tensor, ...]:
        x = image.to(self.stem.proj.weight.dtype).contiguous(memory_format=torch.channels_last)
        x = self.stem(x)
        outputs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                out = getattr(self, f"norm{i}")(x).to(image.dtype)
                outputs.append(out.contiguous() if image.is_contiguous() else out)
        return tuple(outputs)
