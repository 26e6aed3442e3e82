"""Read a weight file of Hire-MLP, whoever wrote it, and convert its names to ours.

Files come from the reference code's training script, from OpenMMLab (a classifier, detector or
segmentor that holds the backbone under a prefix), or from this package's converter. They come
from strangers too, so they are read as data: a file that would run code is refused.

Only torch is imported here.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from urllib.parse import urlparse

import torch
from torch import Tensor

StateDict = dict[str, Tensor]

# Where a file keeps its state dict, in the order in which they are tried.
CONTAINERS = ("state_dict", "model", "model_ema")


class Inert:
    """Stands in for a class or function that a file names and that its weights don't need."""

    def __init__(self, *args: object) -> None:
        """Takes whatever the file gives."""

    def __setstate__(self, state: object) -> None:
        """Takes whatever the file gives."""


# What honest files hold beside tensors: the official training script its command line, an
# OpenMMLab training checkpoint its log. They are read as `Inert`, so nothing of theirs runs.
HARMLESS = [
    "argparse.Namespace",
    "builtins.getattr",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{c}.multiarray.{f}" for c in ("core", "_core") for f in ("_reconstruct", "scalar")),
]


class CheckpointError(ValueError):
    """A weight file that cannot be used; the message is one line for people."""


def read_checkpoint(source: str | os.PathLike[str], ema: bool = False) -> StateDict:
    """State dict of a weight file, tensors on the CPU, names as they stand in the file.

    Args:
        source: a path, or an http(s) URL, which is kept in torch hub's checkpoint folder.
        ema: take the averaged weights (`model_ema`) of a file that has both.

    Returns:
        Name to tensor. A container (`state_dict`, `model`, `model_ema`) and a `module.` prefix
        on every name are taken off.

    Raises:
        FileNotFoundError: no file there.
        CheckpointError: it cannot be downloaded, is no weight file, would run code, or holds no
            tensors.
    """
    path = fetch(str(source))
    if os.path.isdir(path):
        raise CheckpointError(f"{path} is a folder; expected a weight file (.pth)")
    if not os.path.exists(path):
        raise FileNotFoundError(f"weight file {path} not found")
    try:
        return unwrap(load_data(path), path, ema)
    except CheckpointError as error:
        if path == str(source) or "://" not in str(source):
            raise
        raise CheckpointError(f"{error} (from {source}; delete it to download again)") from error


def read_backbone(source: str | os.PathLike[str], prefix: str = "", ema: bool = False) -> StateDict:
    """The Hire-MLP backbone in a weight file, by our names.

    Args:
        source: a path or an http(s) URL.
        prefix: of the backbone's names; needed only where a file holds several backbones.
        ema: take the averaged weights of a file that has both.

    Raises:
        FileNotFoundError: no file there.
        CheckpointError: see `read_checkpoint`, `select_backbone`, `convert_state_dict`; the
            message names the file.
    """
    state_dict = select_backbone(read_checkpoint(source, ema), str(source), prefix)
    try:
        return convert_state_dict(state_dict)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error


def fetch(source: str) -> str:
    """Local path of `source`; a URL is downloaded once and then found again.

    Raises:
        CheckpointError: the download failed.
    """
    if urlparse(source).scheme not in ("http", "https"):
        return os.path.expanduser(source)
    path = cached_path(source)
    if not os.path.exists(path):
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            # Writes beside `path` and renames, so that an interrupted download leaves nothing,
            # and processes that download side by side do not disturb each other.
            torch.hub.download_url_to_file(source, path, progress=False)
        except (OSError, HTTPException) as error:
            raise CheckpointError(
                f"cannot download {source} ({first_line(error)}); download it by hand and pass "
                f"its path, or put it at {path}"
            ) from error
    return path


def cached_path(url: str) -> str:
    """Where a URL's file is kept: torch hub's checkpoint folder, one name for each URL."""
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]
    name = os.path.basename(urlparse(url).path)
    return os.path.join(torch.hub.get_dir(), "checkpoints", f"{digest}-{name}")


def load_data(path: str) -> object:
    """`torch.load` of a file as data.

    Raises:
        CheckpointError: not a torch file, cut short, or one that would run code.
    """
    if not hasattr(torch.serialization, "safe_globals"):
        raise CheckpointError(
            f"{path} not read: torch {torch.__version__} cannot read weights safely; "
            f"2.6 and later can"
        )
    # What others have allow-listed stays outside: a name must not mean two things.
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with torch.serialization.safe_globals([(Inert, name) for name in HARMLESS]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can make its reader raise anything
        unsafe = re.search(r"GLOBAL ([\w.]+)|class ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and unsafe:
            raise CheckpointError(
                f"{path} refused: reading it would run code ({unsafe[1] or unsafe[2]}); "
                f"get the weights from a source you trust, saved as plain tensors"
            ) from error
        raise CheckpointError(
            f"{path} cannot be read as a torch weight file ({first_line(error)}); "
            f"it is damaged or something else"
        ) from error
    finally:
        torch.serialization.add_safe_globals(others)


def unwrap(data: object, name: str, ema: bool = False) -> StateDict:
    """The state dict inside what a file held.

    Raises:
        CheckpointError: there is none.
    """
    if not isinstance(data, Mapping):
        raise CheckpointError(f"{name} holds a {type(data).__name__}; expected a state dict")
    if ema and not isinstance(data.get("model_ema"), Mapping):
        raise CheckpointError(f"{name} holds no averaged weights (model_ema)")
    containers = ("model_ema",) if ema else CONTAINERS
    inside = next((data[key] for key in containers if isinstance(data.get(key), Mapping)), data)
    tensors = {
        key: value
        for key, value in inside.items()
        if isinstance(value, Tensor) and value.layout == torch.strided
    }
    if not tensors or not all(isinstance(key, str) for key in tensors):
        keys = ", ".join(str(key) for key in list(inside)[:5]) or "nothing"
        raise CheckpointError(
            f"{name} holds no weights: found {keys}; expected tensors by name, bare or under "
            f"{', '.join(CONTAINERS)}"
        )
    if all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def first_line(error: Exception) -> str:
    """What an exception says, cut to its first line."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


# Names ------------------------------------------------------------------------------------------

TOKEN_MIXER = {
    "mlp_h1": "height.reduce",
    "mlp_h1_norm": "height.norm",
    "mlp_h2": "height.expand",
    "mlp_w1": "width.reduce",
    "mlp_w1_norm": "width.norm",
    "mlp_w2": "width.expand",
    "mlp_c": "channel",
    "reweight.fc1": "reweight.fc1",
    "reweight.fc2": "reweight.fc2",
    "proj": "proj",
}
LEAF = r"(?P<leaf>weight|bias|running_mean|running_var|num_batches_tracked)"
LAYER = "|".join(re.escape(name) for name in TOKEN_MIXER)
REFERENCE_BLOCK = re.compile(
    rf"network\.(?P<index>\d*[02468])\.(?P<block>\d+)\."
    rf"(?:(?P<plain>norm1|norm2|mlp\.fc1|mlp\.fc2)|attn\.(?P<mixer>{LAYER}))\.{LEAF}"
)
REFERENCE_DOWNSAMPLE = re.compile(rf"network\.(?P<index>\d*[13579])\.(?P<layer>proj|norm)\.{LEAF}")
REFERENCE_STEM = re.compile(rf"patch_embed\.(?P<layer>proj|norm)\.{LEAF}")
REFERENCE_OUTPUT_NORM = re.compile(rf"norm(?P<index>\d*[02468])\.{LEAF}")
CLASSIFIER_NORM = re.compile(rf"norm\.{LEAF}")
HEAD = re.compile(r"head\.(weight|bias)")
OUR_LAYER = "|".join(re.escape(name) for name in TOKEN_MIXER.values())
OURS = re.compile(
    rf"(?:stem\.(?:proj|norm)|norm\d+|stages\.\d+\.(?:downsample\.(?:proj|norm)|"
    rf"blocks\.\d+\.(?:norm1|norm2|mlp\.fc1|mlp\.fc2|token_mixer\.(?:{OUR_LAYER}))))\.{LEAF}"
)


def convert_state_dict(state_dict: Mapping[str, Tensor]) -> StateDict:
    """The reference code's names and shapes to ours; a state dict of ours passes through.

    The 1x1 convolutions over p * C channels become convolutions of kernel p over C channels
    (the same numbers in the same order). The classifier's `norm` becomes the norm of the last
    stage; its `head.*` keep their names. The input is left alone.

    Raises:
        CheckpointError: a key that is neither the reference's nor ours.
    """
    if all(OURS.fullmatch(key) or HEAD.fullmatch(key) for key in state_dict):
        return dict(state_dict)
    indices = [int(match["index"]) for match in map(REFERENCE_BLOCK.fullmatch, state_dict) if match]
    last_stage = max(indices, default=0) // 2
    converted: StateDict = {}
    for key, value in state_dict.items():
        name = convert_key(key, last_stage)
        if name in converted:
            raise CheckpointError(f"key {key} stands twice in the state dict, also as {name}")
        if match := re.fullmatch(r"(.*\.attn\.)mlp_([hw])1\.weight", key):
            value = unfold_kernel(key, value, state_dict.get(f"{match[1]}mlp_c.weight"), match[2])
        converted[name] = value
    return converted


def convert_key(key: str, last_stage: int) -> str:
    """Our name of a key of the reference.

    Args:
        key: such as `network.2.0.attn.mlp_h1.weight`.
        last_stage: the stage whose output norm stands in for the classifier's `norm`.

    Raises:
        CheckpointError: no key of the reference.
    """
    if match := REFERENCE_BLOCK.fullmatch(key):
        layer = match["plain"] or f"token_mixer.{TOKEN_MIXER[match['mixer']]}"
        return f"stages.{int(match['index']) // 2}.blocks.{match['block']}.{layer}.{match['leaf']}"
    if match := REFERENCE_DOWNSAMPLE.fullmatch(key):
        stage = (int(match["index"]) + 1) // 2
        return f"stages.{stage}.downsample.{match['layer']}.{match['leaf']}"
    if match := REFERENCE_STEM.fullmatch(key):
        return f"stem.{match['layer']}.{match['leaf']}"
    if match := REFERENCE_OUTPUT_NORM.fullmatch(key):
        return f"norm{int(match['index']) // 2}.{match['leaf']}"
    if match := CLASSIFIER_NORM.fullmatch(key):
        return f"norm{last_stage}.{match['leaf']}"
    if HEAD.fullmatch(key):
        return key
    raise CheckpointError(f"key {key} is not one of Hire-MLP; is this file of another network?")


def unfold_kernel(key: str, weight: Tensor, channel: Tensor | None, axis: str) -> Tensor:
    """(C/2, C * p, 1, 1), channel outer, to (C/2, C, p, 1) for `h` or (C/2, C, 1, p) for `w`.

    Args:
        key: name of `weight`, for the error.
        weight: of `mlp_h1` or `mlp_w1`.
        channel: weight of the same block's `mlp_c`, (C, C, 1, 1), which tells C.
        axis: `h` or `w`.

    Raises:
        CheckpointError: the shapes do not fit each other.
    """
    dim = channel.shape[0] if channel is not None and channel.ndim == 4 else 0
    if weight.ndim != 4 or not dim or weight.shape[1] % dim or weight.shape[2:] != (1, 1):
        shape = "none" if channel is None else tuple(channel.shape)
        raise CheckpointError(
            f"key {key} has shape {tuple(weight.shape)} beside an mlp_c of shape {shape}; "
            f"expected (C/2, p * C, 1, 1) and (C, C, 1, 1)"
        )
    region = weight.shape[1] // dim
    return weight.reshape(len(weight), dim, *((region, 1) if axis == "h" else (1, region)))


# Checks -----------------------------------------------------------------------------------------


def select_backbone(state_dict: Mapping[str, Tensor], name: str, prefix: str = "") -> StateDict:
    """The backbone's part of a state dict, its prefix taken off.

    Args:
        state_dict: of a backbone, or of a model that holds one.
        name: of the file, for errors.
        prefix: such as `backbone.`; needed only where a file holds several backbones.

    Raises:
        CheckpointError: no Hire-MLP backbone, or several and no prefix.
    """
    stems = ("patch_embed.proj.weight", "stem.proj.weight")
    found = sorted(
        {key[: -len(stem)] for key in state_dict for stem in stems if key.endswith(stem)}
    )
    found = [start for start in found if not start or start.endswith(".")]
    if prefix:
        prefix = prefix.removesuffix(".") + "."
        found = [start for start in found if start == prefix]
    if len(found) != 1:
        keys = ", ".join(list(state_dict)[:3])
        where = f" under {prefix}" if prefix else ""
        raise CheckpointError(
            f"{name} holds several backbones ({', '.join(found)}); choose one with prefix=..."
            if found
            else f"{name} holds no Hire-MLP backbone{where}; its first keys are {keys}"
        )
    start = found[0]
    return {key.removeprefix(start): v for key, v in state_dict.items() if key.startswith(start)}


@dataclass(frozen=True)
class Match:
    """What of a file goes into a network; `str()` is the line for the log.

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
    """Check a converted state dict against a network's.

    The file may have a head, output norms and later stages that the network lacks: dropped. The
    network may have output norms that the file lacks: kept. Nothing else may differ.

    Args:
        given: of the file, by our names (see `convert_state_dict`).
        expected: the network's `state_dict()`.
        name: of the file, for errors.

    Raises:
        CheckpointError: another depth or width, a missing or unknown tensor, another shape, or
            a value that is not finite.
    """
    theirs, ours = layout(given), layout(expected)
    if theirs[: len(ours)] != ours:
        raise CheckpointError(
            f"{name} is a network with {describe(theirs)}, this one has {describe(ours)}; "
            f"set arch to the file's, or take another file"
        )
    expected_tops, given_tops = tops(expected), tops(given)
    unknown = [key for key in given if key not in expected]
    dropped = [key for key in unknown if top(key) not in expected_tops]
    # BatchNorm's counter is absent from old files and changes no output.
    missing = [k for k in expected if k not in given and not k.endswith("num_batches_tracked")]
    kept = [key for key in missing if top(key).startswith("norm") and top(key) not in given_tops]
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
        if value.shape != expected[key].shape:
            raise CheckpointError(
                f"{name}: {key} has shape {tuple(value.shape)}, the network needs "
                f"{tuple(expected[key].shape)}"
            )
        if not value.isfinite().all():
            raise CheckpointError(f"{name}: {key} holds NaN or Inf; the file is damaged")
    return Match(name, tensors, tuple(dropped), tuple(kept))


def layout(state_dict: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    """(blocks, channels) of each stage, read from the names and shapes of a state dict of ours."""
    stages: dict[int, tuple[int, int]] = {}
    for key, value in state_dict.items():
        if match := re.fullmatch(r"stages\.(\d+)\.blocks\.(\d+)\.norm1\.weight", key):
            stage, block = int(match[1]), int(match[2])
            depth = max(block + 1, stages.get(stage, (0, 0))[0])
            stages[stage] = (depth, value.numel())
    return [stages[i] for i in sorted(stages)]


def describe(stages: list[tuple[int, int]]) -> str:
    """`depths 2,2,4,2 and dims 64,128,320,512`."""
    depths = ",".join(str(depth) for depth, _ in stages)
    dims = ",".join(str(dim) for _, dim in stages)
    return f"depths {depths or 'none'} and dims {dims or 'none'}"


def top(key: str) -> str:
    """The part of the network that a tensor belongs to: `stem`, `stages.2`, `norm3`, `head`."""
    return ".".join(key.split(".")[: 2 if key.startswith("stages.") else 1])


def tops(keys: Mapping[str, Tensor]) -> set[str]:
    """`top` of each key."""
    return {top(key) for key in keys}


def groups(keys: Sequence[str], most: int | None = None) -> str:
    """Names for people: the parts that `keys` belong to, or the first `most` keys."""
    names = list(dict.fromkeys(map(top, keys))) if most is None else list(keys[:most])
    more = len(keys) - len(names) if most is not None else 0
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")
