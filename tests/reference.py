"""The reference implementation, as far as tests need it: its names, its numbers, its definition."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hire_mlp_mm.arch import ARCHS
from hire_mlp_mm.names import convert_key, convert_state_dict

DATA = Path(__file__).parent / "data"
FILES = sorted(DATA.glob("*.npz"))
REFERENCE_KEYS = json.loads((DATA / "reference_keys.json").read_text())
PAD_MODES = {"c": "circular", "0": "zero", "replicate": "replicate"}


def filled(key: str, shape: list[int]) -> Tensor:
    """The golden files' formula for the tensor of a reference key."""
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    random = np.random.RandomState(zlib.crc32(key.encode()))
    if key.endswith("running_var"):
        values = random.uniform(0.5, 1.5, shape)
    elif key.endswith(("running_mean", "bias")):
        values = 0.1 * random.standard_normal(shape)
    elif len(shape) == 1:
        values = random.uniform(0.5, 1.5, shape)
    else:
        values = 0.5 * random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(values, np.float32))


def classifier_state(arch: str) -> dict[str, Tensor]:
    """State dict of the reference classifier, as in the official files."""
    return {k: filled(k, shape) for k, shape in REFERENCE_KEYS[arch]["classifier"].items()}


def dense_state(arch: str, output_norm: bool = True) -> dict[str, Tensor]:
    """State dict of the reference dense backbone."""
    shapes = dict(REFERENCE_KEYS[arch]["classifier"])
    shapes = {k: s for k, s in shapes.items() if not k.startswith(("norm.", "head."))}
    if output_norm:
        shapes |= REFERENCE_KEYS[arch]["dense_extra"]
    return {key: filled(key, shape) for key, shape in shapes.items()}


def golden_input(meta: dict) -> Tensor:
    """The image batch of a golden file."""
    shape = (meta["batch"], 3, meta["height"], meta["width"])
    values = np.random.RandomState(meta["seed"]).standard_normal(shape)
    return torch.from_numpy(values.astype(np.float32))


def load(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """The arrays of a golden file, and what was run."""
    archive = np.load(path)
    return archive, json.loads(str(archive["meta"]))


def of_kind(kind: str) -> list:
    """The golden files of a kind, for a test to be asked of each."""
    return [pytest.param(f, id=f.stem) for f in FILES if load(f)[1]["kind"] == kind]


def golden_network(meta: dict, network: type[nn.Module], **options) -> nn.Module:
    """The network that a golden file is of, with the formula's weights."""
    norm = meta.get("extra_norm", True)
    model = network(
        meta["arch"],
        output_norm=norm,
        shift_padding=PAD_MODES[meta.get("step_pad_mode", "c")],
        region_padding=PAD_MODES[meta.get("pixel_pad_mode", "c")],
        **options,
    )
    model.load_state_dict(convert_state_dict(dense_state(meta["arch"], norm)))
    return model


def relative_error(ours: Tensor, theirs: np.ndarray) -> float:
    """The largest difference over the largest value."""
    return float(np.abs(ours.detach().cpu().numpy() - theirs).max() / np.abs(theirs).max())


def check_maps(outputs: tuple[Tensor, ...], archive: dict[str, np.ndarray], most: float) -> None:
    """Compare the maps of every stage with a golden file's."""
    for i, output in enumerate(outputs):
        assert output.shape == archive[f"stage{i}"].shape
        assert relative_error(output, archive[f"stage{i}"]) < most


def check_training_step(model: nn.Module, images: Tensor, archive: dict, meta: dict) -> None:
    """Compare maps, loss, gradients and running statistics of a step with a golden file's."""
    outputs = model(images)
    check_maps(outputs, archive, 1e-4)
    loss = sum((output**2).mean() for output in outputs)
    loss.backward()
    assert loss.item() == pytest.approx(meta["loss"], rel=1e-5)
    last = len(ARCHS[meta["arch"]].dims) - 1
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters()}
    assert len(norms) == len(meta["grad_norm"])
    # A bias before a BatchNorm has no gradient but rounding: hence the absolute term.
    floor = 1e-6 * max(meta["grad_norm"].values())
    for key, norm in meta["grad_norm"].items():
        assert norms[convert_key(key, last)] == pytest.approx(norm, rel=1e-4, abs=floor), key
    buffers = dict(model.named_buffers())
    for key, norm in meta["stat_norm"].items():
        assert buffers[convert_key(key, last)].norm().item() == pytest.approx(norm, rel=1e-5), key


def randomised(module: nn.Module) -> nn.Module:
    """Norms with statistics of their own, in float64 and eval mode."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_mean, -1, 1)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.uniform_(norm.bias, -1, 1)
    return module.double().eval()


def source_token(j: int, size: int, shift: int, shift_padding: str, region_padding: str):
    """Which token of a row stands at place `j` after shift and padding; None for a zero."""
    if j >= size:
        if region_padding == "zero":
            return None
        j = j % size if region_padding == "circular" else size - 1
    if shift_padding == "circular":
        return (j - shift) % size
    return j - shift if j >= shift else None


def naive_branch(row: np.ndarray, branch, shift_padding: str, region_padding: str) -> np.ndarray:
    """A region branch on one row of tokens, token by token, from the paper's description.

    Args:
        row: (C, n), the tokens along the branch's axis.
        branch: a RegionBranch in eval mode, float64.
    """
    dim, size = row.shape
    p, shift = branch.region_size, branch.shift
    reduce = branch.reduce.weight.detach().numpy().reshape(dim // 2, dim * p)
    expand = branch.expand.weight.detach().numpy().reshape(dim * p, dim // 2)
    norm, bias = branch.norm, branch.expand.bias.detach().numpy()
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().numpy()
    offset = norm.bias.detach().numpy() - norm.running_mean.numpy() * scale
    out = np.zeros_like(row)
    for first in range(0, size, p):
        region = np.zeros((dim, p))
        for k in range(p):
            token = source_token(first + k, size, shift, shift_padding, region_padding)
            if token is not None:
                region[:, k] = row[:, token]
        hidden = np.maximum(reduce @ region.reshape(-1) * scale + offset, 0)
        region = (expand @ hidden + bias).reshape(dim, p)
        for k in range(min(p, size - first)):
            place = first + k
            if shift_padding == "circular":
                place = (place - shift) % size
            out[:, place] = region[:, k]
    return out
