"""Give what reads the backbone, neck and heads, the channels and indices of the new maps."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.config import ConfigDict

from ..hire_mlp import ARCHS
from .changes import Swap, SwapError, as_list, is_list
from .measure import Flow, Map

STRIDES = (4, 8, 16, 32)
NOT_READERS = ("backbone", "neck", "data_preprocessor", "train_cfg", "test_cfg", "init_cfg")


def rewire(swap: Swap, old: Flow) -> None:
    """Give neck and heads the channels of what they read now."""
    if old.backbone[-1].stride is None:  # a classifier with a pooling and a head of ours
        return
    network = swap.network
    place = list(range(len(old.out)))
    if not network.get("neck"):
        after = hire_maps(swap)
        if swap.cfg.default_scope == "mmseg":
            place, after = drop_unread_by_heads(swap, after)
    elif old.neck is None:  # a neck of ours, made for what it reads
        after = run_new(network, old.size)
        place = nearest(old.out, after)
        if len(set(place)) < len(after):
            swap.set(swap.cfg, "", "find_unused_parameters", True)
    else:
        after = fit_neck(swap, old)
    before = old.out
    if swap.is_classifier:  # reads the last map, if not all of them
        before, place = before[-len(after) :], list(range(len(after)))
    for reader, where in readers(network, swap.path):
        retarget(swap, reader, where, place, before, after)


def fit_neck(swap: Swap, old: Flow) -> list[Map]:
    """Let the neck read HireMLP's maps, without those it skips if it can; what it gives."""
    network = swap.network
    before, told = copy.deepcopy(network), len(swap.changes)
    try:
        return connect_neck(swap, old, drop=True)
    except SwapError:
        network.backbone, network.neck = before.backbone, before.neck
        del swap.changes[told:]
        return connect_neck(swap, old, drop=False)


def connect_neck(swap: Swap, old: Flow, drop: bool) -> list[Map]:
    """Let the neck read HireMLP's maps; what it gives.

    Raises:
        SwapError: it cannot read them.
    """
    network, neck = swap.network, swap.first_neck
    where = f"{swap.path}neck." if isinstance(network.neck, dict) else f"{swap.path}neck.0."
    now = hire_maps(swap)
    before = old.backbone[-len(now) :]
    skipped = maps_skipped(neck, len(now))
    if skipped and drop:
        drop_skipped(swap, neck, where, skipped)
        before, now = before[skipped:], now[skipped:]
    elif skipped:
        swap.set(swap.cfg, "", "find_unused_parameters", True)
    retarget(swap, neck, where, list(range(len(now))), before, now)
    after = run_new(network, old.size)
    if len(after) != len(old.out) and not swap.is_classifier:
        raise SwapError(f"neck {neck.type} gives {len(after)} maps, not {len(old.out)}")
    return after


def maps_skipped(neck: ConfigDict, given: int) -> int:
    """Count the `given` maps that a neck does not read; their norms would have no gradient.

    They are those below an FPN's `start_level`, and all but the last one where the neck reads one.
    """
    if isinstance(neck.get("in_channels"), int):
        return given - 1
    return neck.get("start_level", 0) if is_list(neck.get("in_channels")) else 0


def drop_skipped(swap: Swap, neck: ConfigDict, where: str, skipped: int) -> None:
    """Have HireMLP not give the maps that a neck skips."""
    kept = stages_given(swap.network)[skipped:]
    swap.set(swap.network.backbone, f"{swap.path}backbone.", "out_indices", kept)
    if is_list(neck.in_channels):
        neck.in_channels = neck.in_channels[skipped:]  # told with their new values, soon
        swap.set(neck, where, "start_level", 0)
    if neck.get("end_level", -1) != -1:
        swap.set(neck, where, "end_level", neck.end_level - skipped)


def drop_unread_by_heads(swap: Swap, maps: list[Map]) -> tuple[list[int], list[Map]]:
    """Have HireMLP not give the maps that no head reads.

    Returns:
        Where each map is now (-1 for nowhere), and the maps that are left.
    """
    network = swap.network
    read = sorted(indices_read(network, len(maps)))
    if len(read) < len(maps):
        kept = tuple(stages_given(network)[i] for i in read)
        swap.set(network.backbone, f"{swap.path}backbone.", "out_indices", kept)
    return [read.index(i) if i in read else -1 for i in range(len(maps))], [maps[i] for i in read]


def stages_given(network: ConfigDict) -> tuple[int, ...]:
    """List the stages whose maps HireMLP gives."""
    return tuple(network.backbone.get("out_indices", range(len(STRIDES))))


def hire_maps(swap: Swap) -> list[Map]:
    """List the maps that HireMLP gives."""
    dims = ARCHS[swap.arch].dims
    return [Map(dims[i], STRIDES[i]) for i in stages_given(swap.network)]


def run_new(network: ConfigDict, size: int) -> list[Map]:
    """Measure what the necks after HireMLP give."""
    return Flow.run(network.backbone, network.neck, [size]).out


def readers(network: ConfigDict, path: str) -> Iterator[tuple[ConfigDict, str]]:
    """Yield each head and other part that reads feature maps, and its path in the config."""
    for key, parts in network.items():
        if key in NOT_READERS:
            continue
        for i, part in enumerate(as_list(parts)):
            if isinstance(part, dict):
                yield part, f"{path}{key}.{i}." if is_list(parts) else f"{path}{key}."


def inner_readers(reader: ConfigDict) -> Iterator[tuple[str, ConfigDict]]:
    """Yield the parts of a reader that have indices of their own, or are heads themselves."""
    for key, part in reader.items():
        if isinstance(part, dict) and ("in_index" in part or key.endswith("_head")):
            yield key, part


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
    """Find for each old map the place of the new one with the nearest stride."""

    def far(old: Map, i: int) -> float:
        return abs(math.log2((after[i].stride or 1) / (old.stride or 1)))

    return [min(range(len(after)), key=lambda i: far(m, i)) for m in before]


def new_channels(
    value: Any, index: Any, place: Sequence[int], before: Sequence[Map], after: Sequence[Map]
) -> Any:
    """Find the channels to put in the place of `value`, which may be a number or a list."""
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
