"""HireMLP as an OpenMMLab backbone: weights, frozen stages, norms by config."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.logging import print_log
from mmengine.model import BaseModule, PretrainedInit
from mmengine.registry import MODELS as ROOT
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .arch import ArchLike
from .checkpoint import CheckpointError, load_weights
from .hire_mlp import HireMLPNet
from .lean import LeanBlock, RecomputedBlock
from .registry import MODELS

# The parts of the network that have parameters, for `HireMLP.get_layer_depth`.
PART = re.compile(
    r"stem\.|stages\.(?P<stage>\d+)\.(?:downsample|blocks\.(?P<block>\d+))\.|norm(?P<norm>\d+)\."
)


def note_loading(backbone: HireMLP, state_dict: Mapping[str, Any], prefix: str, *_: object) -> None:
    """Note that a state dict with tensors of the backbone is loaded into it."""
    if any(key.startswith(prefix) for key in state_dict):
        backbone.starts_random = backbone.awaits_weights = False


def warn_without_weights(backbone: HireMLP, _: object) -> None:
    """Warn, once, at a forward pass before the weights of `init_cfg` are loaded."""
    if backbone.awaits_weights:
        backbone.awaits_weights = False
        warnings.warn(
            "HireMLP runs with random weights: init_cfg names a file that nobody has loaded; call "
            "init_weights() of the model, or set init_cfg=None",
            stacklevel=3,
        )


def check_norm(norm_cfg: Any) -> None:
    """Raise ValueError where mmcv cannot build a norm of a config, for it does not say why."""
    if not isinstance(norm_cfg, dict) or "type" not in norm_cfg:
        raise ValueError(f"HireMLP: norm_cfg={norm_cfg!r}; expected a dict as dict(type='BN')")
    if norm_cfg["type"] == "GN" and "num_groups" not in norm_cfg:
        raise ValueError(
            f"HireMLP: norm_cfg={dict(norm_cfg)} has no num_groups; expected one that divides half "
            f"of every number of channels, such as dict(type='GN', num_groups=16)"
        )


# In the root registry `type='HireMLP'` is found from every scope; in ours,
# `type='hire_mlp_mm.HireMLP'` is found without an import.
@ROOT.register_module()
@MODELS.register_module()
class HireMLP(HireMLPNet, BaseModule):
    """Hire-MLP backbone (arXiv 2108.13341) for MMDetection, MMSegmentation and MMPretrain.

    Args:
        arch: `tiny`, `small`, `base`, `large`, a dict of `Arch` fields, or an `Arch`.
        in_channels: channels of the image.
        out_indices: stages whose output is returned, ascending. Later stages are not built.
        output_norm: a norm on each output. Without it, a classifier's weights lose their last
            norm.
        drop_path_rate: of the last block; it grows linearly from 0 at the first.
        shift_padding: `circular`, or `zero`.
        region_padding: `circular`, `zero` or `replicate`.
        norm_cfg: of every norm, built by mmcv: `BN`, `SyncBN`, `GN`, `mmpretrain.LN2d`.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages: no
            gradients, and evaluation mode. Output norms stay trainable, for ImageNet weights
            have none for the first three.
        norm_eval: keep every BatchNorm in evaluation mode.
        with_cp: recompute blocks in the backward pass to save memory.
        init_cfg: `dict(type='Pretrained', checkpoint=X)`, X a path, a URL or `hire-mlp://small`,
            with `prefix='backbone.'` where a file holds several backbones. Loading is strict:
            a file that does not fit raises `CheckpointError`.

    Attributes:
        out_channels: channels of each output.
        strides: stride of each output with respect to the image, in pixels.

    Raises:
        ValueError: an argument out of its range.

    Examples:
        >>> model = HireMLP(arch='small', init_cfg=dict(type='Pretrained',
        ...                                             checkpoint='hire-mlp://small'))
        >>> model.init_weights()
        >>> [tuple(f.shape) for f in model(torch.rand(1, 3, 224, 224))]
        [(1, 64, 56, 56), (1, 128, 28, 28), (1, 320, 14, 14), (1, 512, 7, 7)]
    """

    # Whether `init_weights` had no weights to load, and nothing else has brought any since.
    starts_random = False
    # Whether `init_cfg` names weights, and neither they nor others have been loaded.
    awaits_weights = False

    def __init__(
        self,
        arch: ArchLike = "small",
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        output_norm: bool = True,
        drop_path_rate: float = 0.0,
        shift_padding: str = "circular",
        region_padding: str = "circular",
        norm_cfg: dict[str, Any] | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict[str, Any] | list[dict[str, Any]] | None = None,
    ) -> None:
        # Here, so that the class is there to be named, and says this, where mmcv is missing.
        try:
            from mmcv.cnn import build_norm_layer
        except ImportError as error:
            raise ImportError(
                f"HireMLP takes its norms from mmcv, which cannot be imported ({error}): pip "
                f"install mmcv-lite, or mmcv; hire_mlp_mm.HireMLPNet needs torch alone"
            ) from error
        norm_cfg = norm_cfg or dict(type="BN")
        check_norm(norm_cfg)
        super().__init__(
            arch=arch,
            in_channels=in_channels,
            out_indices=out_indices,
            output_norm=output_norm,
            drop_path_rate=drop_path_rate,
            shift_padding=shift_padding,
            region_padding=region_padding,
            norm_layer=lambda dim: build_norm_layer(norm_cfg, dim)[1],
            block=RecomputedBlock if with_cp else LeanBlock,
        )
        if not -1 <= frozen_stages <= len(self.arch.dims):
            raise ValueError(
                f"HireMLP: frozen_stages={frozen_stages}; expected -1 (nothing) to "
                f"{len(self.arch.dims)} (the stem and all stages)"
            )
        self.init_cfg = init_cfg
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.awaits_weights = bool(self.split_init_cfg()[0])
        # Torch's loaders call this, and so does mmengine's.
        self.register_load_state_dict_pre_hook(note_loading)
        self.register_forward_pre_hook(warn_without_weights)
        for module in self.frozen_modules():
            module.requires_grad_(False)
        self.train(self.training)

    def frozen_modules(self) -> list[nn.Module]:
        """Return the stem and stages that `frozen_stages` freezes."""
        return [self.stem, *self.stages[: self.frozen_stages]] if self.frozen_stages >= 0 else []

    def train(self, mode: bool = True) -> HireMLP:
        """Set the mode; frozen modules and, by `norm_eval`, norms stay in evaluation mode."""
        super().train(mode)
        if mode and self.starts_random:  # a run's checkpoint, if it has one, is loaded by now
            self.starts_random = False
            said = "HireMLP training starts from random weights: init_cfg and load_from name none"
            print_log(said, logger="current", level=logging.INFO)
        for module in self.frozen_modules():
            module.eval()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        """Return the layer of a parameter, for layer-wise learning-rate decay.

        Layer 0 is the stem, then every block of the built stages is a layer, in the order of the
        forward pass. A stage's downsampling belongs to its first block, an output norm to the
        last block of its stage. What is not in the backbone (neck, heads) is the last layer. The
        protocol is MMPretrain's (`VisionTransformer.get_layer_depth`), so its
        `LearningRateDecayOptimWrapperConstructor` takes HireMLP as it is; the layers are ours.

        Args:
            param_name: name of a parameter in the whole model.
            prefix: of the backbone's parameters in that model, such as `backbone.`.

        Returns:
            The layer, from 0 to layers - 1, and the number of layers: blocks + 2.

        Raises:
            ValueError: a name with the prefix that is none of this network's.
        """
        depths = self.arch.depths[: len(self.stages)]
        layers = sum(depths) + 2
        if not param_name.startswith(prefix):
            return layers - 1, layers
        part = PART.match(param_name, len(prefix))
        if part is None:
            raise ValueError(
                f"HireMLP: {param_name!r} is no parameter of the stem, stages or output norms "
                f"under the prefix {prefix!r}"
            )
        if part["norm"]:
            return sum(depths[: int(part["norm"]) + 1]), layers
        if part["stage"]:
            return sum(depths[: int(part["stage"])]) + int(part["block"] or 0) + 1, layers
        return 0, layers

    def init_weights(self) -> None:
        """Load what `init_cfg` names; without it, keep the initialisation of the constructor.

        Raises:
            CheckpointError: the weights do not fit, or cannot be read.
            FileNotFoundError: there is no such file.
        """
        init_cfg = self.init_cfg
        # mmengine's own loader goes on when nothing fits: it gets the other kinds only. Where there
        # are none it would change nothing, and print a line for each parameter.
        pretrained, self.init_cfg = self.split_init_cfg()
        if self.init_cfg:
            super().init_weights()
        self.init_cfg, self.is_init = init_cfg, True
        for cfg in pretrained:
            unknown = set(cfg) - {"type", "checkpoint", "prefix", "map_location"}
            if unknown or not cfg.get("checkpoint"):
                raise CheckpointError(
                    f"HireMLP: init_cfg={dict(cfg)}; expected dict(type='Pretrained', "
                    f"checkpoint=..., prefix=...)"
                )
            self.load_pretrained(cfg["checkpoint"], cfg.get("prefix") or "")
        self.starts_random = not pretrained

    def split_init_cfg(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the parts of `init_cfg` that name weights, and the others."""
        init_cfg = self.init_cfg or []
        cfgs = [init_cfg] if isinstance(init_cfg, dict) else list(init_cfg)
        pretrained = [cfg for cfg in cfgs if cfg.get("type") in ("Pretrained", PretrainedInit)]
        return pretrained, [cfg for cfg in cfgs if cfg not in pretrained]

    def load_pretrained(self, checkpoint: str, prefix: str = "") -> None:
        """Load weights strictly and say in one line of the log what was loaded.

        Args:
            checkpoint: a path, a URL, or `hire-mlp://` and a name of `weights.WEIGHTS`.
            prefix: of the backbone's names, where the file holds several backbones.

        Raises:
            CheckpointError: the weights do not fit, or cannot be read.
            FileNotFoundError: there is no such file.
        """
        match = load_weights(self, checkpoint, prefix)
        print_log(f"HireMLP weights from {match}", logger="current", level=logging.INFO)
