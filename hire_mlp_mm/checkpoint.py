"""Read a weight file of Hire-MLP, whoever wrote it, convert its names to ours, and load it.

Files come from the reference code's training script, from OpenMMLab (a classifier, detector or
segmentor that holds the backbone under a prefix), or from this package's converter. They come
from strangers too, so they are read as data: a file that would run code is refused.

Only torch is imported here.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from . import weights
from .errors import CheckpointError as CheckpointError  # ours, too
from .errors import first_line, short
from .torch_file import load_data

StateDict = dict[str, Tensor]

# Where a file keeps its state dict, in the order in which they are tried.
CONTAINERS = ("state_dict", "model", "model_ema")


def read_checkpoint(
    source: str | os.PathLike[str], ema: bool = False, sha256: str | None = None
) -> StateDict:
    """State dict of a weight file, tensors on the CPU, names as they stand in the file.

    Args:
        source: a path, `hire-mlp://NAME`, or an http(s) URL, which is kept in torch hub's
            checkpoint folder.
        ema: take the averaged weights (`model_ema`) of a file that has both.
        sha256: of the file, in hexadecimal, or its beginning; the file is not read unless it
            has it. A URL such as `.../name-1a2b3c4d.pth` says it itself.

    Returns:
        Name to tensor. A container (`state_dict`, `model`, `model_ema`) and a `module.` prefix
        on every name are taken off.

    Raises:
        FileNotFoundError: no file there.
        CheckpointError: it cannot be downloaded, has another checksum, is no weight file, would
            run code, or holds no tensors.
    """
    return in_memory(read_mapped(str(source), ema, sha256))


def read_backbone(
    source: str | os.PathLike[str],
    prefix: str = "",
    ema: bool = False,
    sha256: str | None = None,
) -> StateDict:
    """The Hire-MLP backbone in a weight file, by our names.

    Args:
        source: a path, an http(s) URL, or `hire-mlp://NAME`.
        prefix: of the backbone's names; needed only where a file holds several backbones.
        ema: take the averaged weights of a file that has both.
        sha256: see `read_checkpoint`.

    Raises:
        FileNotFoundError: no file there.
        CheckpointError: see `read_checkpoint`, `select_backbone`, `convert_state_dict`; the
            message names the file.
    """
    # Of a checkpoint with much else in it, only the backbone's part comes into memory.
    state_dict = select_backbone(read_mapped(str(source), ema, sha256), str(source), prefix)
    try:
        return convert_state_dict(in_memory(state_dict))
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error


def read_mapped(source: str, ema: bool, sha256: str | None) -> StateDict:
    """`read_checkpoint`, but tensors may still be in the file, which is not to change.

    So torch also compares their sizes with the file's, which its other way of reading began to do
    in a later version.
    """
    source, sha256 = locate(source, sha256)
    path = fetch(source)
    try:
        check_digest(path, sha256 or digest_in(source))
        data = load_data(path, mapped=True)
        return unwrap(data, path, ema)
    except CheckpointError as error:
        if not is_url(source):
            raise
        raise CheckpointError(f"{error} (from {source}; delete it to download again)") from error


def in_memory(tensors: Mapping[str, Tensor]) -> StateDict:
    """Copies of tensors that may be in a file; those that share memory go on sharing it."""
    copies: dict[tuple[int, int], torch.UntypedStorage] = {}
    result: StateDict = {}
    for key, value in tensors.items():
        storage = value.untyped_storage()
        place = (storage.data_ptr(), storage.nbytes())
        if place not in copies:
            copies[place] = storage.clone()
        offset = value.storage_offset()
        result[key] = value.new_empty(0).set_(copies[place], offset, value.shape, value.stride())
    return result


def locate(source: str, sha256: str | None = None) -> tuple[str, str | None]:
    """Find where the file of a published name is, and its digest; others are as they are.

    Raises:
        CheckpointError: no weights of that name were published.
    """
    if not source.startswith(weights.SCHEME):
        return source, sha256
    record = weights.resolve(source)
    return record.url, sha256 or record.sha256


def is_url(source: str) -> bool:
    """Whether a weight file is to be downloaded."""
    return urlparse(source).scheme in ("http", "https")


def fetch(source: str) -> str:
    """Local path of `source`; a URL is downloaded once and then found again.

    Raises:
        CheckpointError: the download failed.
    """
    if not is_url(source):
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


def digest_in(source: str) -> str | None:
    """The digest that a URL's file name holds by torch hub's custom: `name-1a2b3c4d.pth`.

    Digits alone are taken for a date.
    """
    found = re.search(r"-([0-9a-f]{8,64})\.[^./]*$", urlparse(source).path)
    return found[1] if is_url(source) and found and not found[1].isdigit() else None


def check_digest(path: str, expected: str | None) -> None:
    """Compare a file with the SHA-256 that is expected of it, or with its first digits.

    Raises:
        CheckpointError: another file.
    """
    if expected is None or not os.path.isfile(path):
        return
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if not digest.hexdigest().startswith(expected.lower()):
        raise CheckpointError(
            f"{path} is not read: its SHA-256 is {digest.hexdigest()}, expected {expected}; it is "
            f"damaged or another file, so get it again"
        )


def unwrap(data: object, name: str, ema: bool = False) -> StateDict:
    """The state dict inside what a file held.

    Raises:
        CheckpointError: there is none.
    """
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
    """A tensor without what a file may have hung onto it: attributes, a gradient."""
    return torch._C.TensorBase.detach(value)


def oddity(value: Tensor) -> str | None:
    """What keeps a tensor from being weights: its kind, or that its numbers aren't in the file."""
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
# Of so many digits that no file can ask for a number beyond reason.
COUNT, EVEN, ODD = "[0-9]{1,3}", "[0-9]{0,2}[02468]", "[0-9]{0,2}[13579]"
LEAF = r"(?P<leaf>weight|bias|running_mean|running_var|num_batches_tracked)"
LAYER = "|".join(re.escape(name) for name in TOKEN_MIXER)
REFERENCE_BLOCK = re.compile(
    rf"network\.(?P<index>{EVEN})\.(?P<block>{COUNT})\."
    rf"(?:(?P<plain>norm1|norm2|mlp\.fc1|mlp\.fc2)|attn\.(?P<mixer>{LAYER}))\.{LEAF}"
)
REFERENCE_DOWNSAMPLE = re.compile(rf"network\.(?P<index>{ODD})\.(?P<layer>proj|norm)\.{LEAF}")
REFERENCE_STEM = re.compile(rf"patch_embed\.(?P<layer>proj|norm)\.{LEAF}")
REFERENCE_OUTPUT_NORM = re.compile(rf"norm(?P<index>{EVEN})\.{LEAF}")
CLASSIFIER_NORM = re.compile(rf"norm\.{LEAF}")
HEAD = re.compile(r"head\.(weight|bias)")
OUR_LAYER = "|".join(re.escape(name) for name in TOKEN_MIXER.values())
OURS = re.compile(
    rf"(?:stem\.(?:proj|norm)|norm{COUNT}|stages\.{COUNT}\.(?:downsample\.(?:proj|norm)|"
    rf"blocks\.{COUNT}\.(?:norm1|norm2|mlp\.fc1|mlp\.fc2|token_mixer\.(?:{OUR_LAYER}))))\.{LEAF}"
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
            raise CheckpointError(f"key {short(key)} stands twice, also as {name}")
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
    raise CheckpointError(
        f"key {short(key)} is not one of Hire-MLP; is this file of another network?"
    )


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
        shape = "none" if channel is None else sizes(channel)
        raise CheckpointError(
            f"key {key} has shape {sizes(weight)} beside an mlp_c of shape {shape}; "
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
        keys = groups(list(state_dict), 3)
        where = f" under {prefix}" if prefix else ""
        raise CheckpointError(
            f"{name} holds several backbones ({groups(found, 3)}); choose one with prefix=..."
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
    tensors = {}
    for key, value in given.items():
        if key in expected:
            try:
                tensors[key] = fit(value, expected[key])
            except ValueError as error:
                raise CheckpointError(f"{name}: {short(key)} {error}") from error
    return Match(name, tensors, tuple(dropped), tuple(kept))


def load_weights(net: nn.Module, source: str | os.PathLike[str], prefix: str = "") -> Match:
    """Load a weight file into a network, strictly.

    Example:
        >>> net = HireMLPNet(arch='small')
        >>> print(load_weights(net, 'hire-mlp://small'))

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
    place, sha256 = locate(str(source))
    given = read_backbone(place, prefix, sha256=sha256)
    match = match_state_dict(given, net.state_dict(), place)
    net.load_state_dict(match.tensors, strict=False)  # `match` has been stricter
    return match


def fit(value: Tensor, expected: Tensor) -> Tensor:
    """A file's tensor in the type of a network's.

    Raises:
        ValueError: another shape or kind of number, or numbers that are not finite.
    """
    if value.shape != expected.shape:
        raise ValueError(f"has shape {sizes(value)}, the network needs {sizes(expected)}")
    number = value.is_floating_point() or not expected.is_floating_point()
    if not number or value.is_complex() or value.dtype == torch.bool:
        raise ValueError(f"is of {value.dtype}, the network needs {expected.dtype}")
    fitted = value.to(expected.dtype)
    # In the network's type, for which a number may be too large, unless that is a counter's.
    if not (fitted if expected.is_floating_point() else value.float()).isfinite().all():
        raise ValueError(f"holds NaN or Inf as {expected.dtype}; the file is damaged")
    return fitted


def layout(state_dict: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    """(blocks, channels) of each stage, read from the names and shapes of a state dict of ours."""
    stages: dict[int, tuple[int, int]] = {}
    for key, value in state_dict.items():
        if match := re.fullmatch(rf"stages\.({COUNT})\.blocks\.({COUNT})\.norm1\.weight", key):
            stage, block = int(match[1]), int(match[2])
            depth = max(block + 1, stages.get(stage, (0, 0))[0])
            stages[stage] = (depth, value.numel())
    return [stages[i] for i in sorted(stages)]


def describe(stages: list[tuple[int, int]]) -> str:
    """`depths 2,2,4,2 and dims 64,128,320,512`."""
    depths = ",".join(str(depth) for depth, _ in stages)
    dims = ",".join(str(dim) for _, dim in stages)
    return f"depths {depths or 'none'} and dims {dims or 'none'}"


def sizes(value: Tensor) -> str:
    """The shape of a tensor for people."""
    return short(str(tuple(value.shape)))


def top(key: str) -> str:
    """The part of the network that a tensor belongs to: `stem`, `stages.2`, `norm3`, `head`."""
    return ".".join(key.split(".")[: 2 if key.startswith("stages.") else 1])


def tops(keys: Mapping[str, Tensor]) -> set[str]:
    """`top` of each key."""
    return {top(key) for key in keys}


def groups(keys: Sequence[str], most: int | None = None) -> str:
    """Names for people: the parts that `keys` belong to, or the first `most` keys."""
    names = list(dict.fromkeys(map(top, keys))) if most is None else list(keys)
    shown = names[: most or 8]
    more = len(names) - len(shown)
    return ", ".join(map(short, shown)) + (f" and {more} more" if more > 0 else "")
