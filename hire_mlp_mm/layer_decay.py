"""Let learning rates decay by layer in any model whose backbone knows its layers.

The constructors of MMDetection and MMSegmentation take their own backbones only, and MMPretrain's
takes classifiers only. This one takes any backbone, wherever it stands in the model, that has
MMPretrain's `get_layer_depth(param_name, prefix)`, as HireMLP has.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import re
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as ROOT
from torch import nn

from .registry import OPTIM_WRAPPER_CONSTRUCTORS

# mmengine's constructor takes these, and passes over a misspelt option without a word.
HOST_OPTIONS = (
    "custom_keys", "bias_lr_mult", "bias_decay_mult", "norm_decay_mult", "flat_decay_mult",
    "dwconv_decay_mult", "dcn_offset_lr_mult", "bypass_duplicate",
)  # fmt: skip
# DistributedDataParallel, torch.compile, FSDP and checkpointing put these into parameters' names.
WRAPPER = re.compile(
    r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)


@ROOT.register_module()
@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Build an optimizer whose learning rates shrink from the heads down to the stem.

    A parameter of layer l of n gets `lr * decay_rate ** (n - 1 - l)`: heads and necks get `lr`, the
    backbone's last layer `lr * decay_rate`, and so on (the rule of BEiT, arXiv 2106.08254, and of
    the hosts' constructors). An `lr_mult` of the other options multiplies with the decay. Frozen
    parameters are left out. Parameters with equal settings share a group, which says `layer_id`,
    `lr_scale` and `param_names`.

    A scheduler's `eta_min` is the same for every group and may lie above a low layer's rate; give
    `eta_min_ratio` instead.

    Args:
        optim_wrapper_cfg: config of the wrapper; its `optimizer` says `lr`.
        paramwise_cfg: `decay_rate`, above 0 and at most 1, and any option of mmengine's
            `DefaultOptimWrapperConstructor`: `norm_decay_mult`, `custom_keys`...

    Raises:
        ValueError: `decay_rate` or `lr` is missing or out of range, an option is unknown, or (when
            called with a model) no part of the model has `get_layer_depth`.

    Examples:
        >>> optim_wrapper = dict(
        ...     optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
        ...     constructor='hire_mlp_mm.LayerDecayOptimWrapperConstructor',
        ...     paramwise_cfg=dict(decay_rate=0.9, norm_decay_mult=0., bias_decay_mult=0.))
    """

    def __init__(
        self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None
    ) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        rate = self.paramwise_cfg.get("decay_rate")
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= 1:
            raise ValueError(
                f"layer decay: paramwise_cfg has decay_rate={rate!r}; expected a number above 0 "
                f"and at most 1, such as 0.9"
            )
        known = ("decay_rate", *HOST_OPTIONS)
        unknown = sorted(set(self.paramwise_cfg) - {*known})
        if unknown:
            near = difflib.get_close_matches(unknown[0], known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected any of {', '.join(known)}"
            raise ValueError(f"layer decay: unknown {', '.join(unknown)} in paramwise_cfg; {hint}")
        if self.base_lr is None:
            raise ValueError("layer decay: the optimizer has no lr; give it one")

    def add_params(
        self, params: list[dict[str, Any]], module: nn.Module, prefix: str = "", **kwargs: Any
    ) -> None:
        """Add the groups of a model's trainable parameters to `params`, in place.

        mmengine's constructor calls this method once more for each part, which has a `prefix`.
        """
        if prefix:
            super().add_params(params, module, prefix=prefix, **kwargs)
            return
        backbones = find_backbones(module)
        names = {param: name for name, param in module.named_parameters()}
        single: list[dict[str, Any]] = []
        super().add_params(single, module, **kwargs)  # one group per parameter

        rate = self.paramwise_cfg["decay_rate"]
        groups: dict[str, dict[str, Any]] = {}
        for options in single:
            (param,) = options.pop("params")
            name = names.pop(param, None)
            if name is None:
                continue  # shared by two modules: the first has it
            layer, layers = layer_depth(WRAPPER.sub("", name), backbones)
            scale = rate ** (layers - 1 - layer)
            options["lr"] = options.get("lr", self.base_lr) * scale
            options |= dict(layer_id=layer, lr_scale=scale)
            key = repr(sorted(options.items()))
            group = groups.setdefault(key, dict(params=[], param_names=[], **options))
            group["params"].append(param)
            group["param_names"].append(name)
        params.extend(groups.values())
        rates = [group["lr"] for group in groups.values()]
        print_log(
            f"layer decay {rate}: {len({g['layer_id'] for g in groups.values()})} layers, "
            f"{len(groups)} groups, lr from {min(rates, default=0):.3g} "
            f"to {max(rates, default=0):.3g}",
            logger="current",
            level=logging.INFO,
        )


def find_backbones(model: nn.Module) -> dict[str, nn.Module]:
    """Find the parts of a model that know their layers, by the prefix of their parameters' names.

    A classifier of MMPretrain has a `get_layer_depth`, too; it takes no prefix and asks its
    backbone, so it is not one itself.
    """
    backbones = {}
    for name, module in model.named_modules():
        # Of the class: torch.compile's wrapper passes on its module's attributes.
        method = getattr(type(module), "get_layer_depth", None)
        if method and "prefix" in inspect.signature(method).parameters:
            backbones[WRAPPER.sub("", f"{name}." if name else "")] = module
    if not backbones:
        raise ValueError(
            f"layer decay: no part of {type(model).__name__} has "
            f"get_layer_depth(param_name, prefix); HireMLP and some backbones of mmpretrain have it"
        )
    return backbones


def layer_depth(name: str, backbones: dict[str, nn.Module]) -> tuple[int, int]:
    """Ask the backbone that holds a parameter for (layer, number of layers); for a head's, any."""
    inner_first = reversed(backbones)
    prefix = next((p for p in inner_first if name.startswith(p)), next(iter(backbones)))
    return backbones[prefix].get_layer_depth(name, prefix)  # type: ignore[operator]
