"""Put HireMLP into an existing config of MMDetection, MMSegmentation or MMPretrain.

    python tools/swap_backbone.py mmdet::retinanet/retinanet_r50_fpn_1x_coco.py --arch small

What the old backbone and its neck give is measured, by running them once on a random image, not
looked up by name. So is what takes their place. What reads them (neck, heads) gets the new
channels; the weights, the image normalisation and what belongs to the old backbone alone follow;
everything else stays. The written config says in its first lines what was changed.
"""

from __future__ import annotations

import argparse
import copy
import difflib
import importlib.util
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from _common import UserError, check_file, describe, read_config, run
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from hire_mlp_mm import weights
from hire_mlp_mm.hire_mlp import ARCHS

STRIDES = (4, 8, 16, 32)
# Red, green, blue, on a scale of 0 to 255: how the images of the ImageNet weights were normalised.
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
# Of the authors' segmentation backbones; they gave none for detection.
DROP_PATH = {"tiny": 0.1, "small": 0.1, "base": 0.2, "large": 0.3}
IMPORTS = ("hire_mlp_mm", "hire_mlp_mm.mmcv_ops")
LAYER_DECAY = "LayerDecayOptimWrapperConstructor"
HOST_LAYER_DECAY = ("decay_rate", "layer_decay_rate", "decay_type", "num_layers")
NOT_READERS = ("backbone", "neck", "data_preprocessor", "train_cfg", "test_cfg", "init_cfg")
FPN_CHANNELS = 256


class SwapError(UserError):
    """The config holds something that HireMLP cannot take the place of."""


@dataclass
class Swap:
    """One replacement: the config being changed, and what has been changed in it."""

    cfg: Config
    arch: str
    original: ConfigDict  # the network before
    changes: list[str] = field(default_factory=list)

    def set(self, owner: ConfigDict, path: str, key: str, value: Any) -> None:
        """Set `owner[key]`, and note it if that changes anything."""
        old = brief(owner[key]) if key in owner else "not set"
        if owner.get(key) != value:
            owner[key] = value
            self.changes.append(f"{path}{key}: {old} -> {brief(value)}")


def brief(value: Any) -> str:
    """A value as the list of changes shows it."""
    if isinstance(value, dict) and "type" in value:
        checkpoint = value.get("checkpoint")
        return f"{value['type']}, {checkpoint}" if checkpoint else str(value["type"])
    return str(list(value) if isinstance(value, tuple) else value)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="a file, or PACKAGE::FILE such as mmdet::detr/NAME.py")
    parser.add_argument("--arch", choices=list(ARCHS), default="small")
    parser.add_argument("--out", help="file to write (default: NAME_hire_ARCH.py, here)")
    parser.add_argument(
        "--weights",
        help="ImageNet weights: a file, a URL, hire-mlp://NAME, or 'none' (default: the "
        "published ones of the arch)",
    )
    args = parser.parse_args()
    path = find_config(args.config)
    if args.weights not in (None, "none"):
        check_file(args.weights, "weight file")
    out = Path(args.out or f"{path.stem}_hire_{args.arch}.py")
    if out.exists():
        raise UserError(f"{out} exists; name another file with --out")
    if out.suffix != ".py" or not out.parent.is_dir():
        raise UserError(f"--out {out}: expected a .py file in a folder that exists")
    cfg = read_config(str(path))
    changes = swap_backbone(cfg, args.arch, args.weights)
    out.write_text(render(cfg, args.config, changes), encoding="utf-8")
    print("Changed:", *changes, sep="\n    ")
    print("Kept: all else. For you to decide:", *advice(cfg), sep="\n    ")
    print(f"{out}: {args.config} with HireMLP {args.arch}; train it with tools/train.py {out}")


def find_config(name: str) -> Path:
    """The file of a config: a path, or `package::path` in an installed package's configs.

    Raises:
        UserError: no such package or file; names the nearest ones.
    """
    if "::" not in name:
        if not Path(name).is_file():
            raise UserError(f"config {name} not found")
        return Path(name)
    package, _, inside = name.partition("::")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"config {name}: no package {package} is installed")
    root = Path(spec.submodule_search_locations[0]) / ".mim" / "configs"
    path = root / inside
    if not path.is_file():
        known = {p.stem: p.relative_to(root) for p in root.rglob("*.py")}
        near = difflib.get_close_matches(Path(inside).stem, known, 3, 0.5)
        hint = f"; near it: {', '.join(str(known[n]) for n in near)}" if near else ""
        raise UserError(f"config {name} not found in {package}{hint}")
    return path


def render(cfg: Config, source: str, changes: Sequence[str]) -> str:
    """Text of the new config: what was changed, then the whole of it."""
    head = [f"{source} with HireMLP in the place of its backbone, by tools/swap_backbone.py."]
    head += ["", "Changed:", *(f"    {line}" for line in changes)]
    head += ["", "Kept: all else. For you to decide:", *(f"    {line}" for line in advice(cfg))]
    comment = "\n".join(f"# {line}".rstrip() for line in head)
    return f"{comment}\n\n{cfg.pretty_text}"


def advice(cfg: Config) -> Iterator[str]:
    """What a person may want to change next, and the tool does not."""
    optimizer = (cfg.get("optim_wrapper") or {}).get("optimizer") or {}
    kind, rate = optimizer.get("type"), optimizer.get("lr")
    if kind != "AdamW":
        yield f"optim_wrapper.optimizer: still {kind}, lr {rate}; Hire-MLP was trained with AdamW,"
        yield "    lr 1e-4 on COCO, lr 1.2e-4 and weight decay 0.01 on ADE20K"
    else:
        yield f"optim_wrapper.optimizer: still AdamW, lr {rate}, of the old backbone"
    yield "param_scheduler: still the old backbone's"


# The replacement -------------------------------------------------------------------------------


def swap_backbone(cfg: Config, arch: str, checkpoint: str | None = None) -> list[str]:
    """Replace the backbone of `cfg`, in place; returns one line for each change.

    Args:
        cfg: a config of a detector, segmentor or classifier, or of a tracker or semi-supervised
            model around a detector.
        arch: `tiny`, `small`, `base`, `large`.
        checkpoint: as `init_cfg` takes it, `none` for no weights, None for the published ones.

    Raises:
        SwapError: the model has no backbone that HireMLP can replace; says why.
    """
    network, path = find_network(cfg.model)
    if network.backbone.get("type", "").rpartition(".")[2] == "HireMLP":
        raise SwapError(f"{path}backbone is HireMLP already; set its arch by hand")
    swap = Swap(cfg, arch, copy.deepcopy(network))
    refuse_tied(network)
    scope = cfg.get("default_scope", "mmengine")
    with DefaultScope.overwrite_default_scope(scope):
        old = measure_old(network)
        replace_backbone(swap, network, path, old, checkpoint)
        if is_classifier(network) and not (network.get("neck") and old.backbone[-1].stride):
            replace_pooling(swap, network, path, old)
        elif old.neck and makes_pyramid(old):
            swap.set(network, path, "neck", None)
            old = Flow(old.size, old.neck, None)
        elif not fits_by_stage(old.backbone) and not is_classifier(network):
            add_fpn(swap, network, path)
        rewire(swap, network, path, old)
        normalise(swap)
        drop_remains(swap, network, path)
        check(swap, network, old.size)
    return swap.changes


def find_network(model: ConfigDict) -> tuple[ConfigDict, str]:
    """The part of a model that has the backbone, and its path in the config."""
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


def as_list(value: Any) -> list[Any]:
    """A list as it is, None as an empty one, anything else as a list of one."""
    return list(value) if is_list(value) else [] if value is None else [value]


def is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def is_classifier(network: ConfigDict) -> bool:
    """Whether the network reads one pooled vector per image."""
    return str(network.get("type")).split(".")[-1] == "ImageClassifier"


# What an existing network gives ------------------------------------------------------------------


@dataclass(frozen=True)
class Map:
    """One output: its channels, and its stride in pixels (None for a vector per image)."""

    channels: int
    stride: int | None


@dataclass
class Flow:
    """What the backbone gives for an image of `size` pixels, and what its neck makes of it."""

    size: int
    backbone: list[Map]
    neck: list[Map] | None

    @property
    def out(self) -> list[Map]:
        """What the heads read."""
        return self.backbone if self.neck is None else self.neck

    @classmethod
    def run(cls, backbone: ConfigDict, neck: Any, sizes: Sequence[int]) -> Flow:
        """Build both and run them on a random image of the first size that they take.

        Raises:
            SwapError: they take none of the sizes, or give something that is not a feature map.
        """
        model, necks = build(backbone), [build(part) for part in as_list(neck)]
        for i, size in enumerate(sizes):
            image = torch.rand(2, backbone.get("in_channels", 3), size, size)
            try:
                maps = given = forward(model, image)
                for part in necks:
                    maps = forward(part, maps)
            except SwapError:
                raise
            except Exception as error:  # whatever a stranger's backbone or neck raises
                if i + 1 < len(sizes):
                    continue
                names = " and ".join(str(part.type) for part in (backbone, *as_list(neck)))
                raise SwapError(
                    f"{names} cannot be run on an image alone: {describe(error)}"
                ) from error
            break
        made = [measure(m, size) for m in maps] if necks else None
        return cls(size, [measure(m, size) for m in given], made)


def measure_old(network: ConfigDict) -> Flow:
    """What the old backbone and neck give; a classifier's may be anything, and is replaced."""
    try:
        return Flow.run(network.backbone, network.get("neck"), image_sizes(network.backbone))
    except SwapError:
        if not is_classifier(network):
            raise
        return Flow(224, [Map(0, None)], None)


def image_sizes(backbone: ConfigDict) -> list[int]:
    """Sizes of image to try: first the one that a backbone was made for, where it says so."""
    named = backbone.get("img_size")
    return [*([max(as_list(named))] if named else []), 256, 224, 512]


def build(part: ConfigDict) -> nn.Module:
    """Build a part of the network without weights."""
    part = copy.deepcopy(part)
    for key in ("init_cfg", "pretrained"):
        part.pop(key, None)
    model = MODELS.build(part)
    model.train()  # some give more outputs in training; some return None here
    return model


@torch.no_grad()
def forward(model: nn.Module, inputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The outputs of a backbone or neck as a flat tuple of tensors."""
    out = model(inputs)
    out = (out,) if isinstance(out, Tensor) else tuple(out)
    if not out or not all(isinstance(x, Tensor) and x.dim() in (2, 4) for x in out):
        raise SwapError(f"{type(model).__name__} gives tokens or other things beside feature maps")
    return out


def measure(output: Tensor, size: int) -> Map:
    """Channels and stride of one output for an image of `size` pixels."""
    if output.dim() == 2:
        return Map(output.shape[1], None)
    # The nearest power of two, for sizes are rounded up or down on the way.
    return Map(output.shape[1], 2 ** round(math.log2(size / output.shape[-1])))


# What takes its place ----------------------------------------------------------------------------


def fits_by_stage(maps: Sequence[Map]) -> bool:
    """Whether each output has a stage that stands for it: the last ones, by depth or stride.

    A backbone with a decoder of its own (U-Net, BiSeNet) gives other sequences of strides.
    """
    strides = [m.stride or STRIDES[-1] for m in maps]
    if len(maps) > len(STRIDES) or strides != sorted(strides) or strides[-1] < 8:
        return False
    return len(set(strides)) < len(strides) or set(strides) <= set(STRIDES)


def choose_stages(maps: Sequence[Map], detector: bool) -> list[int]:
    """The stage that stands for each output of the old backbone, ascending.

    Where the old strides are HireMLP's, it is the stage of the same stride. Dilated and
    single-stride backbones have the same stride more than once: there it is the depth, counted
    from the end. A single map is the deepest, but for a detector, whose heads count on the stride.
    """
    strides = [m.stride for m in maps]
    by_stride = set(strides) <= set(STRIDES) and len(set(strides)) == len(strides)
    if by_stride and (detector or len(strides) > 1):
        return [STRIDES.index(s) for s in strides if s]
    return list(range(len(STRIDES)))[-len(maps) :]


def replace_backbone(
    swap: Swap, network: ConfigDict, path: str, old: Flow, checkpoint: str | None
) -> None:
    """Put HireMLP's config in the place of the backbone's."""
    if not old.backbone[-1].stride and not is_classifier(network):
        raise SwapError(f"{network.type} reads vectors, not feature maps")
    reads_one = is_classifier(network) and not is_list(first_neck(network).get("in_channels"))
    if reads_one:
        stages = [len(STRIDES) - 1]
    elif fits_by_stage(old.backbone):
        stages = choose_stages(old.backbone, detector=swap.cfg.default_scope == "mmdet")
    else:
        stages = list(range(len(STRIDES)))
    strides = [m.stride for m in old.backbone]
    by_stride = strides == [STRIDES[i] for i in stages]
    if swap.cfg.default_scope == "mmdet" and not by_stride:
        raise SwapError(
            f"backbone {network.backbone.type} gives strides {strides}, on which the detector's "
            f"heads are built; HireMLP gives {list(STRIDES)}"
        )
    backbone = ConfigDict(type="HireMLP", arch=swap.arch)
    if stages != [0, 1, 2, 3]:
        backbone.out_indices = tuple(stages)
    if image_channels(swap.cfg, network) != 3:
        backbone.in_channels = image_channels(swap.cfg, network)
    backbone.drop_path_rate = DROP_PATH[swap.arch]
    backbone.init_cfg = initial_weights(swap.arch, checkpoint)
    swap.set(network, path, "backbone", backbone)
    given = {key: value for key, value in backbone.items() if key != "type"}
    swap.changes += [f"    {key}: {brief(value)}" for key, value in given.items()]
    if not by_stride and not is_classifier(network):
        new = [STRIDES[i] for i in stages]
        swap.changes.append(f"    strides of the feature maps: {strides} -> {new}")


def image_channels(cfg: Config, network: ConfigDict) -> int:
    """Channels of the images: three, unless the backbone or their normalisation says otherwise."""
    preprocessor = network.get("data_preprocessor") or cfg.get("data_preprocessor") or {}
    return network.backbone.get("in_channels") or len(preprocessor.get("mean") or STD)


def initial_weights(arch: str, checkpoint: str | None) -> ConfigDict | None:
    """`init_cfg` of the new backbone.

    Raises:
        UserError: no weights are published for this arch.
    """
    if checkpoint == "none":
        return None
    if checkpoint is None and arch not in weights.WEIGHTS:
        raise UserError(f"no weights of {arch} are published; give --weights FILE or none")
    return ConfigDict(type="Pretrained", checkpoint=checkpoint or f"hire-mlp://{arch}")


def makes_pyramid(old: Flow) -> bool:
    """Whether the neck only makes a pyramid of maps of one stride, as plain ViTs need it."""
    strides = {m.stride for m in old.backbone}
    made = tuple(m.stride for m in old.neck or ())
    return len(old.backbone) > 1 and len(strides) == 1 and made == STRIDES


def first_neck(network: ConfigDict) -> ConfigDict:
    """The neck that reads the backbone; empty where there is none."""
    return next(iter(as_list(network.get("neck"))), ConfigDict())


def add_fpn(swap: Swap, network: ConfigDict, path: str) -> None:
    """Give a network whose backbone had a decoder of its own an FPN as decoder."""
    if network.get("neck"):
        raise SwapError(f"neck {network.neck.type} continues the decoder of the old backbone")
    dims = list(ARCHS[swap.arch].dims)
    neck = ConfigDict(type="FPN", in_channels=dims, out_channels=FPN_CHANNELS, num_outs=len(dims))
    swap.set(network, path, "neck", neck)


def replace_pooling(swap: Swap, network: ConfigDict, path: str, old: Flow) -> None:
    """Where the old backbone pooled its map itself, let a neck do it and a linear head read it."""
    head = network.get("head")
    if not head:
        raise SwapError("the classifier has no head")
    swap.set(network, path, "neck", ConfigDict(type="GlobalAveragePooling"))
    if not str(head.type).endswith("LinearClsHead"):
        owners = (head, old_backbone := swap.original.backbone)
        named = [owner.num_classes for owner in owners if owner.get("num_classes")]
        if not named and not old.backbone[-1].channels:
            raise SwapError(f"neither head {head.type} nor {old_backbone.type} says num_classes")
        linear = ConfigDict(
            type="LinearClsHead", num_classes=[*named, old.backbone[-1].channels][0]
        )
        linear.update({key: head[key] for key in ("loss", "topk") if key in head})
        head = linear
        swap.set(network, path, "head", head)
    swap.set(head, f"{path}head.", "in_channels", ARCHS[swap.arch].dims[-1])


# What reads it -----------------------------------------------------------------------------------


def rewire(swap: Swap, network: ConfigDict, path: str, old: Flow) -> None:
    """Give neck and heads the channels of what they read now."""
    if old.backbone[-1].stride is None:  # a classifier with a pooling and a head of ours
        return
    place = list(range(len(old.out)))
    if not network.get("neck"):
        after = hire_maps(swap, network)
        if swap.cfg.default_scope == "mmseg":
            place, after = drop_unread_by_heads(swap, network, path, after)
    elif old.neck is None:  # a neck of ours, made for what it reads
        after = run_new(network, old.size)
        place = nearest(old.out, after)
        if len(set(place)) < len(after):
            swap.set(swap.cfg, "", "find_unused_parameters", True)
    else:
        after = fit_neck(swap, network, path, old)
    before = old.out
    if is_classifier(network):  # reads the last map, if not all of them
        before, place = before[-len(after) :], list(range(len(after)))
    for reader, where in readers(network, path):
        retarget(swap, reader, where, place, before, after)


def fit_neck(swap: Swap, network: ConfigDict, path: str, old: Flow) -> list[Map]:
    """Let the neck read HireMLP's maps, without those it skips if it can; what it gives."""
    before, told = copy.deepcopy(network), len(swap.changes)
    try:
        return connect_neck(swap, network, path, old, drop=True)
    except SwapError:
        network.backbone, network.neck = before.backbone, before.neck
        del swap.changes[told:]
        return connect_neck(swap, network, path, old, drop=False)


def connect_neck(swap: Swap, network: ConfigDict, path: str, old: Flow, drop: bool) -> list[Map]:
    """Let the neck read HireMLP's maps; what it gives.

    Raises:
        SwapError: it cannot read them.
    """
    neck = first_neck(network)
    where = f"{path}neck." if isinstance(network.neck, dict) else f"{path}neck.0."
    now = hire_maps(swap, network)
    before = old.backbone[-len(now) :]
    skipped = maps_skipped(neck, len(now))
    if skipped and drop:
        drop_skipped(swap, network, path, neck, where, skipped)
        before, now = before[skipped:], now[skipped:]
    elif skipped:
        swap.set(swap.cfg, "", "find_unused_parameters", True)
    retarget(swap, neck, where, list(range(len(now))), before, now)
    after = run_new(network, old.size)
    if len(after) != len(old.out) and not is_classifier(network):
        raise SwapError(f"neck {neck.type} gives {len(after)} maps, not {len(old.out)}")
    return after


def maps_skipped(neck: ConfigDict, given: int) -> int:
    """How many of the `given` maps a neck does not read; their norms would have no gradient.

    They are those below an FPN's `start_level`, and all but the last one where the neck reads one.
    """
    if isinstance(neck.get("in_channels"), int):
        return given - 1
    return neck.get("start_level", 0) if is_list(neck.get("in_channels")) else 0


def drop_skipped(
    swap: Swap, network: ConfigDict, path: str, neck: ConfigDict, where: str, skipped: int
) -> None:
    """Have HireMLP not give the maps that a neck skips."""
    kept = stages_given(network)[skipped:]
    swap.set(network.backbone, f"{path}backbone.", "out_indices", kept)
    if is_list(neck.in_channels):
        neck.in_channels = neck.in_channels[skipped:]  # told with their new values, soon
        swap.set(neck, where, "start_level", 0)
    if neck.get("end_level", -1) != -1:
        swap.set(neck, where, "end_level", neck.end_level - skipped)


def drop_unread_by_heads(
    swap: Swap, network: ConfigDict, path: str, maps: list[Map]
) -> tuple[list[int], list[Map]]:
    """Have HireMLP not give the maps that no head reads.

    Returns where each map is now (-1 for nowhere), and the maps that are left.
    """
    read = sorted(indices_read(network, len(maps)))
    if len(read) < len(maps):
        kept = tuple(stages_given(network)[i] for i in read)
        swap.set(network.backbone, f"{path}backbone.", "out_indices", kept)
    return [read.index(i) if i in read else -1 for i in range(len(maps))], [maps[i] for i in read]


def stages_given(network: ConfigDict) -> tuple[int, ...]:
    """The stages whose maps HireMLP gives."""
    return tuple(network.backbone.get("out_indices", range(len(STRIDES))))


def hire_maps(swap: Swap, network: ConfigDict) -> list[Map]:
    """What HireMLP gives."""
    return [Map(ARCHS[swap.arch].dims[i], STRIDES[i]) for i in stages_given(network)]


def run_new(network: ConfigDict, size: int) -> list[Map]:
    """What the necks after HireMLP give."""
    return Flow.run(network.backbone, network.neck, [size]).out


def readers(network: ConfigDict, path: str) -> Iterator[tuple[ConfigDict, str]]:
    """Each head and other part that reads feature maps, and its path in the config."""
    for key, parts in network.items():
        if key in NOT_READERS:
            continue
        for i, part in enumerate(as_list(parts)):
            if isinstance(part, dict):
                yield part, f"{path}{key}.{i}." if is_list(parts) else f"{path}{key}."


def inner_readers(reader: ConfigDict) -> Iterator[tuple[str, ConfigDict]]:
    """Parts of a reader that have indices of their own, or are heads themselves."""
    for key, part in reader.items():
        if isinstance(part, dict) and ("in_index" in part or key.endswith("_head")):
            yield key, part


def indices_read(network: ConfigDict, count: int) -> set[int]:
    """Which of the backbone's `count` outputs a segmentor's heads read."""
    read: set[int] = set()
    todo = [reader for reader, _ in readers(network, "")]
    while todo:
        reader = todo.pop()
        todo += [part for _, part in inner_readers(reader)]
        if "in_channels" in reader:
            default = list(range(count)) if is_list(reader.in_channels) else -1
            read |= {i % count for i in as_list(reader.get("in_index", default))}
        if "c1_in_channels" in reader:
            read.add(0)
    return read


def retarget(
    swap: Swap,
    reader: ConfigDict,
    path: str,
    place: Sequence[int],
    before: Sequence[Map],
    after: Sequence[Map],
) -> None:
    """Change the channels and the indices that a reader of feature maps names.

    `before` and `after` are what it read and what it reads now; `place` says where among the
    latter the one is that stands for each of the former.
    """
    index = reader.get("in_index", -1)
    if "in_channels" in reader and list(place) != list(range(len(after))):
        new_index = type(index)(place[i] for i in index) if is_list(index) else place[index]
        swap.set(reader, path, "in_index", new_index)
    for key in [k for k in reader if k.endswith("in_channels")]:
        first = key == "c1_in_channels"  # DeepLabV3+ reads the first map by this name
        new = new_channels(reader[key], 0 if first else index, place, before, after)
        if key == "in_channels" and is_list(new) and is_list(reader.get("out_channels")):
            out = list(reader.out_channels)
            if out[: len(new)] == list(reader[key]):  # SSD's neck hands on what it reads
                out[: len(new)] = new
                swap.set(reader, path, "out_channels", type(reader.out_channels)(out))
        if key == "in_channels" and reader.get("num_convs") == 0 and "channels" in reader:
            swap.set(reader, path, "channels", new)  # FCNHead classifies what it reads
        swap.set(reader, path, key, new)
    for key, part in inner_readers(reader):
        retarget(swap, part, f"{path}{key}.", place, before, after)


def nearest(before: Sequence[Map], after: Sequence[Map]) -> list[int]:
    """For each old map the place of the new one with the nearest stride."""

    def far(old: Map, i: int) -> float:
        return abs(math.log2((after[i].stride or 1) / (old.stride or 1)))

    return [min(range(len(after)), key=lambda i: far(m, i)) for m in before]


def new_channels(
    value: Any, index: Any, place: Sequence[int], before: Sequence[Map], after: Sequence[Map]
) -> Any:
    """The channels to put in the place of `value`, which may be a number or a list."""
    old = [m.channels for m in before]
    new = [after[i].channels for i in place]
    if old == new:
        return value
    if not is_list(value):
        if not is_list(index) and old[index] % value == 0:
            # Usually once; a vector of ReID's pooling has the channels of several positions.
            return new[index] // (old[index] // value)
        return new[old.index(value)] if old.count(value) == 1 else value
    found, kind = list(value), type(value)  # some readers insist on a tuple
    if is_list(index) and found == [old[i] for i in index]:
        return kind(new[i] for i in index)
    for start in range(len(old) - len(found) + 1):
        end = start + len(found)
        if found == old[start:end]:
            return kind(new[start:end])
        if found == old[start:end][::-1]:
            return kind(new[start:end][::-1])
    return value


# What goes with a backbone -----------------------------------------------------------------------


def normalise(swap: Swap) -> None:
    """Normalise images as those of the weights were; the pipelines load them as BGR."""
    owners = [(swap.cfg.model, "model."), (swap.cfg.model.get("detector"), "model.detector.")]
    owners += [(swap.cfg, "")]
    for owner, path in owners:
        while isinstance(owner, (dict, Config)) and isinstance(
            owner.get("data_preprocessor"), dict
        ):
            owner, path = owner["data_preprocessor"], f"{path}data_preprocessor."
            if "data_preprocessor" in owner or len(owner.get("mean") or STD) != len(MEAN):
                continue
            swap.set(owner, path, "mean", MEAN)
            swap.set(owner, path, "std", STD)
            by_scope = "to_rgb" if swap.cfg.default_scope == "mmpretrain" else "bgr_to_rgb"
            flag = "to_rgb" if "to_rgb" in owner else by_scope
            swap.set(owner, path, flag, True)
            if owner.get("rgb_to_bgr"):
                swap.set(owner, path, "rgb_to_bgr", False)


def drop_remains(swap: Swap, network: ConfigDict, path: str) -> None:
    """Remove weights of the old backbone, and settings that hosts accept for their own only."""
    cfg = swap.cfg
    for owner, where in ((cfg.model, "model."), (network, path)):
        if owner.get("pretrained"):
            swap.set(owner, where, "pretrained", None)
        if any(one.get("type") == "Pretrained" for one in as_list(owner.get("init_cfg"))):
            swap.set(owner, where, "init_cfg", None)
    if cfg.get("load_from"):
        swap.set(cfg, "", "load_from", None)
    if not cfg.get("sync_bn"):
        swap.set(cfg, "", "sync_bn", "torch")
    imports = list((cfg.get("custom_imports") or {}).get("imports") or [])
    imports += [name for name in IMPORTS if name not in imports]
    swap.set(cfg, "", "custom_imports", dict(imports=imports, allow_failed_imports=False))
    use_own_layer_decay(swap)


def use_own_layer_decay(swap: Swap) -> None:
    """Layer-wise learning-rate decay, which the hosts do for backbones of their own only."""
    wrapper = swap.cfg.get("optim_wrapper") or {}
    options = wrapper.get("paramwise_cfg") or {}
    rate = options.get("decay_rate", options.get("layer_decay_rate"))
    if rate is None:
        return
    swap.set(wrapper, "optim_wrapper.", "constructor", LAYER_DECAY)
    kept = {k: v for k, v in options.items() if k not in HOST_LAYER_DECAY}
    swap.set(wrapper, "optim_wrapper.", "paramwise_cfg", ConfigDict(kept, decay_rate=rate))


def check(swap: Swap, network: ConfigDict, size: int) -> None:
    """Build the new model; run a segmentor or classifier forward and backward, too.

    Raises:
        SwapError: it does not build, or does not run where the original does; names what the host
            said.
    """
    runs = swap.cfg.default_scope != "mmdet"  # detectors want annotations, even for a forward pass
    unread: list[str] = []
    try:
        if runs:
            unread = run_small(network, size)
        else:
            build(network)
    except Exception as error:  # whatever a head raises about maps that it was not made for
        if runs and not runs_itself(swap.original, size):
            return
        raise SwapError(f"the heads cannot read HireMLP's maps: {describe(error)}") from error
    if unread:
        swap.set(swap.cfg, "", "find_unused_parameters", True)


def run_small(network: ConfigDict, size: int) -> list[str]:
    """`run_whole` on a small image, which takes a fraction of the time, if every head takes it."""
    try:
        return run_whole(network, min(size, 128))
    except Exception:  # whatever a head raises about small maps
        return run_whole(network, size)


def run_whole(network: ConfigDict, size: int) -> list[str]:
    """Run every head on a random image; names of the backbone's parameters without a gradient."""
    network = copy.deepcopy(network)
    network.backbone.init_cfg = None
    model = build(network)
    image = torch.rand(2, network.backbone.get("in_channels", 3), size, size)
    outputs = [model(image, mode="tensor")]
    if getattr(model, "with_auxiliary_head", False):
        maps, heads = model.extract_feat(image), model.auxiliary_head
        outputs += [head(maps) for head in (heads if isinstance(heads, nn.ModuleList) else [heads])]
    sum(x.float().sum() for x in tensors(outputs)).backward()
    parameters = model.backbone.named_parameters()
    return [name for name, p in parameters if p.requires_grad and p.grad is None]


def runs_itself(network: ConfigDict, size: int) -> bool:
    """Whether a network runs on a random image with its own backbone."""
    try:
        run_whole(network, size)
    except Exception:  # some want annotations, or compiled ops
        return False
    return True


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    for part in value.values() if isinstance(value, dict) else as_list(value):
        if not isinstance(value, Tensor):
            yield from tensors(part)


if __name__ == "__main__":
    run(main)
