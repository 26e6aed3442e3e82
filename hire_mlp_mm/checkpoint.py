"""Read a weight file of Hire-MLP, whoever wrote it, convert its names to ours, and load it.

Files come from the reference code's training script, from OpenMMLab (a classifier, detector or
segmentor that holds the backbone under a prefix), or from this package's converter. Only torch is
imported here.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Others import some of these names from here.
from .errors import CheckpointError as CheckpointError
from .errors import short
from .hire_mlp import HireMLPNet
from .names import StateDict as StateDict
from .names import convert_state_dict as convert_state_dict
from .names import layout, sizes
from .torch_file import load_data
from .weights import check_digest, digest_in, fetch, is_url, locate

# Where a file keeps its state dict, in the order in which they are tried.
CONTAINERS = ("state_dict", "model", "model_ema")


def read_checkpoint(
    source: str | os.PathLike[str], ema: bool = False, sha256: str | None = None
) -> StateDict:
    """Read the state dict of a weight file, by the names that stand in the file.

    Args:
        source: a path, `hire-mlp://NAME`, or an http(s) URL, whose file is downloaded once into
            torch hub's checkpoint folder.
        ema: take the averaged weights (`model_ema`) of a file that has both.
        sha256: of the file, in hexadecimal, or its beginning; another file is not read. A URL such
            as `.../name-1a2b3c4d.pth` says it itself.

    Returns:
        Name to tensor, on the CPU. A container (`state_dict`, `model`, `model_ema`) and a
        `module.` prefix on every name are taken off.

    Raises:
        FileNotFoundError: no file there.
        CheckpointError: it cannot be downloaded, has another checksum, is no weight file, would
            run code, or holds no tensors.
    """
    location, known = locate(str(source))
    return copy.deepcopy(read_mapped(location, ema, sha256 or known))


def read_backbone(source: str | os.PathLike[str], prefix: str = "", ema: bool = False) -> StateDict:
    """Read the Hire-MLP backbone in a weight file, by our names; see `read_checkpoint`.

    Args:
        prefix: of the backbone's names; needed only where a file holds several backbones.

    Raises:
        CheckpointError: also where the file, which the message names, holds no Hire-MLP backbone,
            or several and no prefix is given.
    """
    location, sha256 = locate(str(source))
    state_dict = select_backbone(read_mapped(location, ema, sha256), location, prefix)
    try:
        # Of a checkpoint with much else in it, only the backbone's part comes into memory.
        return convert_state_dict(copy.deepcopy(state_dict))
    except CheckpointError as error:
        raise CheckpointError(f"{location}: {error}") from error


def load_weights(net: nn.Module, source: str | os.PathLike[str], prefix: str = "") -> Match:
    """Load a weight file into a network, strictly: `load_weights(net, 'hire-mlp://small')`.

    Args:
        net: a `HireMLPNet` or `HireMLP`.
        source: `hire-mlp://NAME` with a name of `weights.WEIGHTS`, a path, or an http(s) URL.
        prefix: of the backbone's names, where the file holds several backbones.

    Returns:
        What was loaded; `str()` of it is one line.

    Raises:
        FileNotFoundError: no file there.
        CheckpointError: the weights do not fit, or cannot be read.
    """
    given = read_backbone(source, prefix)
    match = match_state_dict(given, net.state_dict(), locate(str(source))[0])
    net.load_state_dict(match.tensors, strict=False)  # `match` has been stricter
    return match


def from_pretrained(source: str | os.PathLike[str], prefix: str = "", **options: Any) -> HireMLPNet:
    """Build a network in the depths and dims of a weight file, and load the file strictly.

    Regions and shifts are the paper's. A file does not show how far its network shifts: for other
    shifts, call `HireMLPNet` with an `arch` of your own, then `load_weights`.

    Args:
        source, prefix: as for `load_weights`, with its errors.
        options: of `HireMLPNet`, such as `out_indices`.

    Returns:
        The network, in training mode.
    """
    stages = layout(read_backbone(source, prefix))
    if not stages:
        raise CheckpointError(f"{source}: holds no block of a Hire-MLP; give a whole weight file")
    depths, dims = zip(*stages, strict=True)
    net = HireMLPNet(dict(depths=depths, dims=dims), **options)
    load_weights(net, source, prefix)
    return net


def read_mapped(location: str, ema: bool, sha256: str | None) -> StateDict:
    """Read a state dict whose tensors may still be in the file; a deep copy is in memory.

    Torch then compares their sizes with the file's; its other way of reading does so only in later
    versions.
    """
    path = fetch(location)
    try:
        check_digest(path, sha256 or digest_in(location))
        return unwrap(load_data(path, mapped=True), path, ema)
    except CheckpointError as error:
        if not is_url(location):
            raise
        raise CheckpointError(f"{error} (from {location}; delete it to download again)") from error


# Content ----------------------------------------------------------------------------------------


def unwrap(data: object, name: str, ema: bool) -> StateDict:
    """Return the state dict in a file's content; raise CheckpointError if there is none."""
    if not isinstance(data, dict):
        raise CheckpointError(f"{name} holds a {type(data).__name__}; expected a state dict")
    # `dict.items` and the like, for a file can put what it likes before an object's own methods.
    data = dict(dict.items(data))
    if ema and not isinstance(data.get("model_ema"), dict):
        raise CheckpointError(f"{name} holds no averaged weights (model_ema)")
    containers = ("model_ema",) if ema else CONTAINERS
    inside = next((data[key] for key in containers if isinstance(data.get(key), dict)), data)
    entries = dict(dict.items(inside))
    tensors = {key: plain(v) for key, v in entries.items() if isinstance(v, Tensor)}
    if not tensors or not all(isinstance(key, str) for key in tensors):
        keys = ", ".join(short(key, 40) for key in list(entries)[:5]) or "nothing"
        raise CheckpointError(
            f"{name} holds no weights: found {keys}; expected tensors by name, bare or under "
            f"{', '.join(CONTAINERS)}"
        )
    for key, value in tensors.items():
        if odd := oddity(value):
            raise CheckpointError(f"{name}: {short(key)} is {odd}; expected a plain tensor")
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def plain(value: Tensor) -> Tensor:
    """Return a tensor without what a file may have hung onto it: attributes, a gradient."""
    return torch._C.TensorBase.detach(value)


def oddity(value: Tensor) -> str | None:
    """Say why a tensor cannot be weights: its kind, or that its numbers are not in the file."""
    if value.layout != torch.strided or value.is_nested:
        return "a sparse or nested tensor"
    if value.is_quantized:
        return "a quantized tensor"
    if value.is_meta:
        return "a tensor without its numbers (on device meta)"
    if value.is_conj() or value.is_neg():
        return "a view of other numbers"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"a tensor of {value.numel()} numbers of which the file holds fewer"
    return None


def select_backbone(state_dict: Mapping[str, Tensor], name: str, prefix: str) -> StateDict:
    """Return the backbone's part of a model's state dict, without its prefix."""
    stem = re.compile(r"(.*\.)?(?:patch_embed|stem)\.proj\.weight", re.S)
    found = sorted({match[1] or "" for match in map(stem.fullmatch, state_dict) if match})
    if prefix:
        prefix = prefix.removesuffix(".") + "."
        found = [start for start in found if start == prefix]
    if not found:
        where, keys = f" under {prefix}" if prefix else "", groups(list(state_dict), 3)
        raise CheckpointError(
            f"{name} holds no Hire-MLP backbone{where}; its first keys are {keys}"
        )
    if len(found) > 1:
        raise CheckpointError(
            f"{name} holds several backbones ({groups(found, 3)}); choose one with prefix=..."
        )
    (start,) = found
    return {key.removeprefix(start): v for key, v in state_dict.items() if key.startswith(start)}


# Comparison with a network ----------------------------------------------------------------------


@dataclass(frozen=True)
class Match:
    """Hold the part of a file that goes into a network; `str()` is the line for the log.

    Attributes:
        name: of the file.
        tensors: to load, by our names.
        dropped: names in the file without a place in the network.
        kept: names in the network that the file lacks and that keep their initial value.
    """

    name: str
    tensors: StateDict
    dropped: tuple[str, ...]
    kept: tuple[str, ...]

    def __str__(self) -> str:
        line = f"{self.name}: loaded {len(self.tensors)} tensors"
        if self.dropped:
            line += f"; dropped {len(self.dropped)} without a place here ({groups(self.dropped)})"
        if self.kept:
            line += f"; {len(self.kept)} not in the file keep their initial value"
            line += f" ({groups(self.kept)})"
        return line


def match_state_dict(
    given: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: str
) -> Match:
    """Compare a converted state dict, from the file `name`, with the one that a network expects.

    The file may have a head, output norms and later stages that the network lacks: dropped. The
    network may have output norms that the file lacks: kept. Nothing else may differ.

    Raises:
        CheckpointError: another depth or width, a missing or unknown tensor, another shape, or
            a value that is not finite.
    """
    theirs, ours = layout(given), layout(expected)
    if theirs[: len(ours)] != ours:
        raise CheckpointError(
            f"{name} is a network with {in_words(theirs)}, this one has {in_words(ours)}; "
            f"set arch to the file's, or take another file"
        )
    parts, given_parts = set(map(top, expected)), set(map(top, given))
    unknown = [key for key in given if key not in expected]
    # BatchNorm's counter is absent from old files and changes no output.
    missing = [k for k in expected if k not in given and not k.endswith("num_batches_tracked")]
    dropped = [key for key in unknown if top(key) not in parts]
    kept = [key for key in missing if top(key).startswith("norm") and top(key) not in given_parts]
    wrong = [key for key in unknown if key not in dropped]
    lacking = [key for key in missing if key not in kept]
    if wrong or lacking:
        problems = [f"lacks {groups(lacking, 3)}"] if lacking else []
        problems += [f"has {groups(wrong, 3)}, for which there is no place"] if wrong else []
        raise CheckpointError(
            f"{name} {' and '.join(problems)}; the network's norm_cfg or arch is another"
        )
    tensors = {key: value for key, value in given.items() if key in expected}
    for key, value in tensors.items():
        try:
            tensors[key] = fit(value, expected[key])
        except ValueError as error:
            raise CheckpointError(f"{name}: {short(key)} {error}") from error
    return Match(name, tensors, tuple(dropped), tuple(kept))


def fit(value: Tensor, expected: Tensor) -> Tensor:
    """Return a tensor in the type of a network's; raise ValueError where it does not fit that."""
    if value.shape != expected.shape:
        raise ValueError(f"has shape {sizes(value)}, the network needs {sizes(expected)}")
    other_kind = expected.is_floating_point() and not value.is_floating_point()
    if other_kind or value.is_complex() or value.dtype == torch.bool:
        raise ValueError(f"is of {value.dtype}, the network needs {expected.dtype}")
    fitted = value.to(expected.dtype)
    # In the network's type, for which a number may be too large; a counter's has no infinity.
    if not (fitted if expected.is_floating_point() else value.float()).isfinite().all():
        raise ValueError(f"holds NaN or Inf as {expected.dtype}; the file is damaged")
    return fitted


def in_words(stages: list[tuple[int, int]]) -> str:
    """Write a layout for people: `depths 2,2,4,2 and dims 64,128,320,512`."""
    depths = ",".join(str(depth) for depth, _ in stages) or "none"
    dims = ",".join(str(dim) for _, dim in stages) or "none"
    return f"depths {depths} and dims {dims}"


def top(key: str) -> str:
    """Name the part of a network that a tensor belongs to: `stem`, `stages.2`, `norm3`, `head`."""
    return ".".join(key.split(".")[: 2 if key.startswith("stages.") else 1])


def groups(keys: Sequence[str], most: int | None = None) -> str:
    """Write names for people: the parts that `keys` belong to, or the first `most` keys."""
    names = list(dict.fromkeys(map(top, keys))) if most is None else list(keys)
    shown = names[: most or 8]
    more = len(names) - len(shown)
    return ", ".join(map(short, shown)) + (f" and {more} more" if more > 0 else "")
