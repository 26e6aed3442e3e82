"""Give what reads the backbone, neck and heads, the channels and indices of the new maps."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.config import ConfigDict

from ..arch import ARCHS
from .changes import Swap, SwapError, as_list, is_list
from .measure import Flow, Map

STRIDES = (4, 8, 16, 32)
INNER = ("_head", "head_module")  # MMYOLO's heads have the latter
NOT_READERS = ("backbone", "neck", "data_preprocessor", "train_cfg", "test_cfg", "init_cfg")


def rewire(swap: Swap, old: Flow) -> None:
    """Give neck and heads the channels of what they read now."""
    if old.backbone[-1].stride is None:  # a classifier with a pooling and a head of ours
        return
    network, before = swap.network, old.out
    stand_ins = list(range(len(before)))
    if not network.get("neck"):
        after = hire_maps(swap)
        if swap.cfg.default_scope == "mmseg":
            stand_ins, after = drop_unread(swap, after)
    elif old.neck is None:  # a neck of ours, made for what it reads
        after = Flow.run(network.backbone, network.neck, [old.size]).out
        stand_ins = [nearest(m, after) for m in before]
        if len(set(stand_ins)) < len(after):
            swap.set(swap.cfg, "", "find_unused_parameters", True)
    else:
        after = fit_neck(swap, old)
    if swap.is_classifier:  # reads the last map, if not all of them
        before, stand_ins = before[-len(after) :], list(range(len(after)))
    rewiring = Rewiring(swap, before, after, stand_ins)
    for reader, path in readers(network, swap.path):
        rewiring.apply(reader, path)


def fit_neck(swap: Swap, old: Flow) -> list[Map]:
    """Let the neck read HireMLP's maps, without those it skips if it can; return what it gives."""
    network, count = swap.network, len(swap.changes)
    backbone, neck = copy.deepcopy(network.backbone), copy.deepcopy(network.neck)
    try:
        return connect_neck(swap, old, may_drop=True)
    except SwapError:
        network.backbone, network.neck = backbone, neck
        del swap.changes[count:]
        return connect_neck(swap, old, may_drop=False)


def connect_neck(swap: Swap, old: Flow, may_drop: bool) -> list[Map]:
    """Let the neck read HireMLP's maps, or raise SwapError; return what it gives."""
    network, neck = swap.network, swap.first_neck
    path = f"{swap.path}neck." if isinstance(network.neck, dict) else f"{swap.path}neck.0."
    now = hire_maps(swap)
    before = old.backbone[-len(now) :]
    # Maps below an FPN's `start_level`, and all but the last one where the neck reads one: their
    # norms would have no gradient.
    skipped = neck.get("start_level", 0) if is_list(neck.get("in_channels")) else 0
    if isinstance(neck.get("in_channels"), int):
        skipped = len(now) - 1
    if skipped and may_drop:
        kept = stages_given(network)[skipped:]
        swap.set(network.backbone, f"{swap.path}backbone.", "out_indices", kept)
        if is_list(neck.in_channels):
            neck.in_channels = neck.in_channels[skipped:]  # noted with its new values, soon
            swap.set(neck, path, "start_level", 0)
        if neck.get("end_level", -1) != -1:
            swap.set(neck, path, "end_level", neck.end_level - skipped)
        before, now = before[skipped:], now[skipped:]
    elif skipped:
        swap.set(swap.cfg, "", "find_unused_parameters", True)
    Rewiring(swap, before, now, list(range(len(now)))).apply(neck, path)
    after = Flow.run(network.backbone, network.neck, [old.size]).out
    if len(after) != len(old.out) and not swap.is_classifier:
        raise SwapError(f"neck {neck.type} gives {len(after)} maps, not {len(old.out)}")
    return after


def drop_unread(swap: Swap, maps: list[Map]) -> tuple[list[int], list[Map]]:
    """Leave out the maps that no head reads; return where each map is now, and the rest."""
    read = sorted(indices_read(swap.network, len(maps)))
    if len(read) < len(maps):
        kept = tuple(stages_given(swap.network)[i] for i in read)
        swap.set(swap.network.backbone, f"{swap.path}backbone.", "out_indices", kept)
    return [read.index(i) if i in read else -1 for i in range(len(maps))], [maps[i] for i in read]


def stages_given(network: ConfigDict) -> tuple[int, ...]:
    """List the stages whose maps HireMLP gives."""
    return tuple(network.backbone.get("out_indices", range(len(STRIDES))))


def hire_maps(swap: Swap) -> list[Map]:
    """List the maps that HireMLP gives."""
    dims = ARCHS[swap.arch].dims
    return [Map(dims[i], STRIDES[i]) for i in stages_given(swap.network)]


def nearest(old: Map, maps: Sequence[Map]) -> int:
    """Find the map whose stride is the nearest to an old one's."""
    apart = [abs(math.log2((new.stride or 1) / (old.stride or 1))) for new in maps]
    return apart.index(min(apart))


def readers(network: ConfigDict, path: str) -> Iterator[tuple[ConfigDict, str]]:
    """Yield each head and other part that reads feature maps, and its path in the config."""
    for key, parts in network.items():
        for i, part in enumerate(as_list(parts)):
            if isinstance(part, dict) and key not in NOT_READERS:
                yield part, f"{path}{key}.{i}." if is_list(parts) else f"{path}{key}."


def inner_readers(reader: ConfigDict) -> list[tuple[str, ConfigDict]]:
    """List the parts of a reader that have indices of their own, or are heads themselves."""
    parts = ((key, part) for key, part in reader.items() if isinstance(part, dict))
    return [(key, part) for key, part in parts if "in_index" in part or key.endswith(INNER)]


def indices_read(network: ConfigDict, count: int) -> set[int]:
    """Tell which of the backbone's `count` outputs a segmentor's heads read."""
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


@dataclass
class Rewiring:
    """Hold the maps before and after a swap, and which new one stands for each old one."""

    swap: Swap
    before: Sequence[Map]
    after: Sequence[Map]
    stand_ins: Sequence[int]  # index of a new map for each old one; -1 for none

    def apply(self, reader: ConfigDict, path: str) -> None:
        """Change the channels and the indices that a reader of feature maps names."""
        swap, index = self.swap, reader.get("in_index", -1)
        widen = reader.get("widen_factor", 1)  # MMYOLO's necks multiply what they are told by it
        if "in_channels" in reader and list(self.stand_ins) != list(range(len(self.after))):
            at = self.stand_ins
            new_index = type(index)(at[i] for i in index) if is_list(index) else at[index]
            swap.set(reader, path, "in_index", new_index)
        for key in [k for k in reader if k.endswith("in_channels")]:
            is_first = key == "c1_in_channels"  # DeepLabV3+ reads the first map by this name
            new = self.channels(reader[key], 0 if is_first else index, widen)
            out = reader.get("out_channels")
            if key == "in_channels" and is_list(new) and is_list(out):
                kept = len(new)  # the necks of SSD and some YOLO hand on what they read
                if list(out[:kept]) == list(reader[key]):
                    swap.set(reader, path, "out_channels", type(out)([*new, *out[kept:]]))
            if key == "in_channels" and reader.get("num_convs") == 0 and "channels" in reader:
                swap.set(reader, path, "channels", new)  # FCNHead classifies what it reads
            swap.set(reader, path, key, new)
        for key, part in inner_readers(reader):
            self.apply(part, f"{path}{key}.")

    def channels(self, value: Any, index: Any, widen: float) -> Any:
        """Find the channels to put in the place of `value`, which may be a number or a list."""
        old = [int(m.channels / widen) for m in self.before]
        new = [int(self.after[i].channels / widen) for i in self.stand_ins]  # they round up
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
            part = slice(start, start + len(found))
            for step in (1, -1):  # some readers name them from the last to the first
                if found == old[part][::step]:
                    return kind(new[part][::step])
        return value
