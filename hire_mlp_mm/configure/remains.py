"""Change what goes with a backbone: normalisation, old weights, settings of the host's alone."""

from __future__ import annotations

from mmengine.config import ConfigDict

from ..registry import SCOPE
from .changes import Changes, Swap, as_list

# Red, green, blue, on a scale of 0 to 255: how the images of the ImageNet weights were normalised.
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
LAYER_DECAY = f"{SCOPE}.LayerDecayOptimWrapperConstructor"  # MMPose has one of the same name
TO_RGB = ("mmpretrain", "mmaction")  # whose preprocessors call it that
HOST_LAYER_DECAY = ("decay_rate", "layer_decay_rate", "decay_type", "num_layers")


def normalise(swap: Swap) -> None:
    """Normalise images as those of the weights were; the pipelines load them as BGR."""
    cfg, model = swap.cfg, swap.cfg.model
    owners = [(model, "model."), (model.get("detector") or {}, "model.detector."), (cfg, "")]
    for owner, path in owners:
        while isinstance(owner.get("data_preprocessor"), dict):
            owner, path = owner["data_preprocessor"], f"{path}data_preprocessor."
            if "data_preprocessor" in owner or len(owner.get("mean") or STD) != len(MEAN):
                continue
            swap.set(owner, path, "mean", MEAN)
            swap.set(owner, path, "std", STD)
            by_scope = "to_rgb" if cfg.default_scope in TO_RGB else "bgr_to_rgb"
            swap.set(owner, path, "to_rgb" if "to_rgb" in owner else by_scope, True)
            if owner.get("rgb_to_bgr"):
                swap.set(owner, path, "rgb_to_bgr", False)


def drop_remains(swap: Swap) -> None:
    """Remove weights of the old backbone, and settings that hosts accept for their own only."""
    cfg = swap.cfg
    for owner, path in ((cfg.model, "model."), (swap.network, swap.path)):
        if owner.get("pretrained"):
            swap.set(owner, path, "pretrained", None)
        if any(init.get("type") == "Pretrained" for init in as_list(owner.get("init_cfg"))):
            swap.set(owner, path, "init_cfg", None)
    if cfg.get("load_from"):
        swap.set(cfg, "", "load_from", None)
    if not cfg.get("sync_bn"):
        swap.set(cfg, "", "sync_bn", "torch")
    guard_runs(swap)
    # The hosts decay learning rates by layer for their own backbones alone.
    wrapper = cfg.get("optim_wrapper") or {}
    options = wrapper.get("paramwise_cfg") or {}
    rate = options.get("decay_rate", options.get("layer_decay_rate"))
    if rate is not None:
        swap.set(wrapper, "optim_wrapper.", "constructor", LAYER_DECAY)
        kept = {k: v for k, v in options.items() if k not in HOST_LAYER_DECAY}
        swap.set(wrapper, "optim_wrapper.", "paramwise_cfg", ConfigDict(kept, decay_rate=rate))


def guard_runs(change: Changes) -> None:
    """Have the hosts' own tools run a config with every guarantee of docs/reliability.md."""
    cfg = change.cfg
    imports = as_list((cfg.get("custom_imports") or {}).get("imports"))
    imports += [] if SCOPE in imports else [SCOPE]
    change.set(cfg, "", "custom_imports", dict(imports=imports, allow_failed_imports=False))
    if not cfg.get("runner_type"):
        change.set(cfg, "", "runner_type", f"{SCOPE}.Runner")
