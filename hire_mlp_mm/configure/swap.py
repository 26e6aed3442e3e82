"""Put HireMLP into a config of a detector, segmentor, classifier or pose estimator.

The maps of the old backbone and its neck are measured on a random image, not looked up by name,
and so are those of the new ones. Neck and heads get the new channels; the weights, the image
normalisation and what belongs to the old backbone alone follow; everything else stays.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope

from .. import weights
from ..arch import ARCHS
from ..engine.harden import last_name
from .changes import Swap, SwapError, as_list, brief, is_list
from .lazy import name_classes
from .measure import Flow, Map, check_swap, measure_old
from .readers import STRIDES, rewire
from .remains import STD, drop_remains, normalise

# Of the authors' segmentation backbones; they gave none for detection.
DROP_PATH = {"tiny": 0.1, "small": 0.1, "base": 0.2, "large": 0.3}
FPN_CHANNELS = 256


def swap_backbone(cfg: Config, arch: str, checkpoint: str | None = None) -> Config:
    """Make a config whose backbone is HireMLP; the given config stays as it is.

    Args:
        cfg: a config of a detector, segmentor, classifier or pose estimator, or of a tracker or
            semi-supervised model around a detector.
        arch: `tiny`, `small`, `base`, `large`.
        checkpoint: as `init_cfg` takes it, `none` for no weights, None for the published ones.

    Raises:
        SwapError: the model has no backbone that HireMLP can replace, or no weights are published
            for this arch.
    """
    return make_swap(cfg, arch, checkpoint).cfg


def make_swap(cfg: Config, arch: str, checkpoint: str | None = None) -> Swap:
    """Do as `swap_backbone` does, and list the changes.

    Returns:
        The new config as `.cfg`, a line for each change as `.changes`, and `.text(source)`, the
        text of a config file that says them in its first lines.
    """
    cfg = copy.deepcopy(cfg)
    name_classes(cfg)
    network, path = find_network(cfg.model)
    if last_name(network.backbone.get("type")) == "HireMLP":
        raise SwapError(f"{path}backbone is HireMLP already; set its arch by hand")
    refuse_tied(network)
    swap = Swap(cfg, arch, network, path, original=copy.deepcopy(network))
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmengine")):
        old = measure_old(swap)
        replace_backbone(swap, old, checkpoint)
        if swap.is_classifier and not (network.get("neck") and old.backbone[-1].stride):
            replace_pooling(swap, old)
        elif old.neck and makes_pyramid(old):
            swap.set(network, path, "neck", None)
            old = Flow(old.size, old.neck, None)
        elif not fits_by_stage(old.backbone) and not swap.is_classifier:
            add_decoder(swap)
        rewire(swap, old)
        normalise(swap)
        drop_remains(swap)
        check_swap(swap, old.size)
    return swap


def find_network(model: ConfigDict) -> tuple[ConfigDict, str]:
    """Find the part of a model that has the backbone, and its path in the config."""
    for owner, path in ((model, "model."), (model.get("detector"), "model.detector.")):
        if isinstance(owner, dict) and isinstance(owner.get("backbone"), dict):
            return owner, path
    parts = [key for key, value in model.items() if isinstance(value, (dict, list))]
    raise SwapError(f"{model.get('type')} has no `backbone` to replace; it has {', '.join(parts)}")


def refuse_tied(network: ConfigDict) -> None:
    """Raise SwapError where another part of the network continues the old backbone."""
    shared = (network.get("roi_head") or {}).get("shared_head")
    if shared:
        raise SwapError(f"roi_head.shared_head ({shared.type}) is the old backbone's last stage")
    for neck in as_list(network.get("neck")):
        for key in neck:
            if key.endswith("backbone"):
                raise SwapError(f"neck {neck.type} runs the old backbone again ({key})")


def fits_by_stage(maps: Sequence[Map]) -> bool:
    """Tell whether a stage can stand for each output of the old backbone, by depth or stride.

    A backbone with a decoder of its own (U-Net, BiSeNet) gives other sequences of strides.
    """
    strides = [m.stride or STRIDES[-1] for m in maps]
    if len(maps) > len(STRIDES) or strides != sorted(strides) or strides[-1] < 8:
        return False
    return len(set(strides)) < len(strides) or set(strides) <= set(STRIDES)


def choose_stages(swap: Swap, maps: Sequence[Map]) -> list[int]:
    """Choose the stages whose maps take the place of the old backbone's, ascending.

    Where the old strides are HireMLP's, it is the stage of the same stride. Dilated and
    single-stride backbones have the same stride more than once: there it is the depth, counted
    from the end. A single map is the deepest, but where the heads count on the stride.
    """
    every_stage = list(range(len(STRIDES)))
    if swap.is_classifier and not is_list(swap.first_neck.get("in_channels")):
        return every_stage[-1:]
    if not fits_by_stage(maps):
        return every_stage
    strides = [m.stride for m in maps]
    are_ours = set(strides) <= set(STRIDES) and len(set(strides)) == len(strides)
    if are_ours and (len(strides) > 1 or swap.keeps_strides):
        return [STRIDES.index(s) for s in strides if s]
    return every_stage[-len(maps) :]


def replace_backbone(swap: Swap, old: Flow, checkpoint: str | None) -> None:
    """Put HireMLP's config in the place of the backbone's."""
    network, arch = swap.network, swap.arch
    if not old.backbone[-1].stride and not swap.is_classifier:
        raise SwapError(f"{network.type} reads vectors, not feature maps")
    stages = choose_stages(swap, old.backbone)
    strides, new_strides = [m.stride for m in old.backbone], [STRIDES[i] for i in stages]
    if swap.keeps_strides and strides != new_strides and not joins_maps(swap, strides):
        raise SwapError(
            f"backbone {network.backbone.type} gives strides {strides}, on which the "
            f"heads are built; HireMLP gives {list(STRIDES)}"
        )
    # MMAction2 takes a tuple of maps from backbones with MMPretrain's name before them alone.
    host = "mmpretrain." if swap.cfg.default_scope == "mmaction" else ""
    backbone = ConfigDict(type=f"{host}HireMLP", arch=arch)
    if stages != [0, 1, 2, 3]:
        backbone.out_indices = tuple(stages)
    preprocessor = network.get("data_preprocessor") or swap.cfg.get("data_preprocessor") or {}
    channels = network.backbone.get("in_channels") or len(preprocessor.get("mean") or STD)
    if channels != 3:
        backbone.in_channels = channels
    backbone.drop_path_rate = DROP_PATH[arch]
    backbone.init_cfg = pretrained(arch, checkpoint)
    swap.set(network, swap.path, "backbone", backbone)
    options = [(key, value) for key, value in backbone.items() if key != "type"]
    swap.changes += [f"    {key}: {brief(value)}" for key, value in options]
    if strides != new_strides and not swap.is_classifier:
        swap.changes.append(f"    strides of the feature maps: {strides} -> {new_strides}")


def pretrained(arch: str, checkpoint: str | None) -> ConfigDict | None:
    """Make the `init_cfg` of a HireMLP, or raise SwapError where nothing is published for it."""
    if checkpoint is None and arch not in weights.WEIGHTS:
        raise SwapError(f"no weights of {arch} are published; give --weights FILE or none")
    if checkpoint == "none":
        return None
    return ConfigDict(type="Pretrained", checkpoint=checkpoint or f"hire-mlp://{arch}")


def resize_backbone(cfg: Config, arch: str, checkpoint: str | None = None) -> Swap:
    """Make a config whose HireMLP is of another arch; arguments and errors as `make_swap`."""
    cfg = copy.deepcopy(cfg)
    network, path = find_network(cfg.model)
    swap = Swap(cfg, arch, network, path, original=copy.deepcopy(network))
    backbone, at = network.backbone, f"{path}backbone."
    with DefaultScope.overwrite_default_scope(cfg.get("default_scope", "mmengine")):
        old = measure_old(swap)
        if backbone.get("arch", "small") != arch:
            swap.set(backbone, at, "arch", arch)
            swap.set(backbone, at, "drop_path_rate", DROP_PATH[arch])
            rewire(swap, old)
        swap.set(backbone, at, "init_cfg", pretrained(arch, checkpoint))
    return swap


def makes_pyramid(old: Flow) -> bool:
    """Tell whether the neck only makes a pyramid of maps of one stride, as plain ViTs need it."""
    strides = {m.stride for m in old.backbone}
    made = tuple(m.stride for m in old.neck or ())
    return len(old.backbone) > 1 and len(strides) == 1 and made == STRIDES


def joins_maps(swap: Swap, strides: Sequence[int | None]) -> bool:
    """Tell whether a pose estimator reads one large map, as HRNet gives it."""
    return swap.cfg.default_scope == "mmpose" and list(strides) == [STRIDES[0]]


def add_decoder(swap: Swap) -> None:
    """Give a network whose backbone had a decoder of its own an FPN, or MMPose's joined maps."""
    if swap.network.get("neck"):
        raise SwapError(f"neck {swap.network.neck.type} continues the decoder of the old backbone")
    if swap.cfg.default_scope == "mmpose":  # its heads read the last map alone
        neck = ConfigDict(type="FeatureMapProcessor", concat=True)
    else:
        dims = list(ARCHS[swap.arch].dims)
        sizes = dict(in_channels=dims, out_channels=FPN_CHANNELS, num_outs=len(dims))
        neck = ConfigDict(type="FPN", **sizes)
    swap.set(swap.network, swap.path, "neck", neck)


def replace_pooling(swap: Swap, old: Flow) -> None:
    """Give a classifier, whose old backbone pooled its map itself, a neck and a head that do."""
    network, path = swap.network, swap.path
    head = network.get("head")
    if not head:
        raise SwapError("the classifier has no head")
    swap.set(network, path, "neck", ConfigDict(type="GlobalAveragePooling"))
    if last_name(head.type) != "LinearClsHead":
        old_backbone, given = swap.original.backbone, old.backbone[-1].channels
        classes = head.get("num_classes") or old_backbone.get("num_classes") or given
        if not classes:
            raise SwapError(f"neither head {head.type} nor {old_backbone.type} says num_classes")
        kept = {key: head[key] for key in ("loss", "topk") if key in head}
        head = ConfigDict(type="LinearClsHead", num_classes=classes, **kept)
        swap.set(network, path, "head", head)
    swap.set(head, f"{path}head.", "in_channels", ARCHS[swap.arch].dims[-1])
