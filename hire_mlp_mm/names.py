"""Convert the names and shapes of the reference code's weights to ours. Only torch is imported."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from .errors import CheckpointError, short

StateDict = dict[str, Tensor]

# Of so many digits that no file can ask for a number beyond reason.
COUNT = "[0-9]{1,3}"
EVEN, ODD = "(?P<index>[0-9]{0,2}[02468])", "(?P<index>[0-9]{0,2}[13579])"
LEAF = r"(?P<leaf>weight|bias|running_mean|running_var|num_batches_tracked)"
BLOCK_LAYER = r"norm1|norm2|mlp\.fc1|mlp\.fc2"
MIXER_LAYER = {
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
MIXER = "|".join(map(re.escape, MIXER_LAYER))
OUR_MIXER = "|".join(map(re.escape, MIXER_LAYER.values()))
# The reference's names and ours. The reference counts stages and downsamplings in turn.
NAMES = {
    rf"patch_embed\.(?P<layer>proj|norm)\.{LEAF}": "stem.{layer}.{leaf}",
    rf"network\.{EVEN}\.(?P<block>{COUNT})\.(?P<layer>{BLOCK_LAYER})\.{LEAF}": (
        "stages.{stage}.blocks.{block}.{layer}.{leaf}"
    ),
    rf"network\.{EVEN}\.(?P<block>{COUNT})\.attn\.(?P<layer>{MIXER})\.{LEAF}": (
        "stages.{stage}.blocks.{block}.token_mixer.{layer}.{leaf}"
    ),
    rf"network\.{ODD}\.(?P<layer>proj|norm)\.{LEAF}": "stages.{stage}.downsample.{layer}.{leaf}",
    rf"norm{EVEN}?\.{LEAF}": "norm{stage}.{leaf}",
    r"head\.(?P<leaf>weight|bias)": "head.{leaf}",
}
OURS = re.compile(
    rf"(?:stem\.(?:proj|norm)|norm{COUNT}|stages\.{COUNT}\.(?:downsample\.(?:proj|norm)|"
    rf"blocks\.{COUNT}\.(?:{BLOCK_LAYER}|token_mixer\.(?:{OUR_MIXER}))))\.{LEAF}|"
    rf"head\.(?:weight|bias)"
)


def convert_state_dict(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Convert the reference code's names and shapes to ours; a state dict of ours passes through.

    The 1x1 convolutions over p * C channels become convolutions of kernel p over C channels
    (the same numbers in the same order). The classifier's `norm` becomes the norm of the last
    stage; its `head.*` keep their names. The input is left alone.

    Raises:
        CheckpointError: a key that is neither the reference's nor ours.
    """
    if all(map(OURS.fullmatch, state_dict)):
        return dict(state_dict)
    blocks = map(re.compile(rf"network\.{EVEN}\.{COUNT}\.").match, state_dict)
    last_stage = max((int(match["index"]) // 2 for match in blocks if match), default=0)
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
    """Convert a name of the reference; the classifier's `norm` is that of the last stage."""
    for theirs, ours in NAMES.items():
        if match := re.fullmatch(theirs, key):
            parts = match.groupdict()
            index, layer = parts.get("index"), parts.get("layer", "")
            stage = (int(index) + 1) // 2 if index else last_stage
            return ours.format_map(parts | dict(stage=stage, layer=MIXER_LAYER.get(layer, layer)))
    raise CheckpointError(
        f"key {short(key)} is not one of Hire-MLP; is this file of another network?"
    )


def unfold_kernel(key: str, weight: Tensor, channel: Tensor | None, axis: str) -> Tensor:
    """Reshape (C/2, C * p, 1, 1) to (C/2, C, p, 1) for `h`, to (C/2, C, 1, p) for `w`.

    The weight of the same block's `mlp_c`, (C, C, 1, 1), tells C.
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


def layout(state_dict: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    """Read (blocks, channels) of each stage from the names and shapes of a state dict of ours."""
    stages: dict[int, tuple[int, int]] = {}
    for key, value in state_dict.items():
        if match := re.fullmatch(rf"stages\.({COUNT})\.blocks\.({COUNT})\.norm1\.weight", key):
            stage, block = int(match[1]), int(match[2])
            depth = max(block + 1, stages.get(stage, (0, 0))[0])
            stages[stage] = (depth, value.numel())
    return [stages[i] for i in sorted(stages)]


def sizes(value: Tensor) -> str:
    """Write the shape of a tensor for people."""
    return short(str(tuple(value.shape)))
