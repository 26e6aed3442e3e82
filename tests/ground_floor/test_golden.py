"""Does the network compute what the reference implementation computes?"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from torch.nn import functional as F

from hire_mlp_mm import HireMLP
from hire_mlp_mm.arch import ARCHS
from hire_mlp_mm.names import convert_key, convert_state_dict
from tests.reference import DATA, PAD_MODES, classifier_state, dense_state, golden_input

FILES = sorted(DATA.glob("*.npz"))


def load(path):
    archive = np.load(path)
    return archive, json.loads(str(archive["meta"]))


def of_kind(kind):
    return [pytest.param(f, id=f.stem) for f in FILES if load(f)[1]["kind"] == kind]


def relative_error(ours, theirs) -> float:
    return float(np.abs(ours.detach().numpy() - theirs).max() / np.abs(theirs).max())


def build(meta) -> HireMLP:
    norm = meta.get("extra_norm", True)
    model = HireMLP(
        meta["arch"],
        output_norm=norm,
        shift_padding=PAD_MODES[meta.get("step_pad_mode", "c")],
        region_padding=PAD_MODES[meta.get("pixel_pad_mode", "c")],
    )
    model.load_state_dict(convert_state_dict(dense_state(meta["arch"], norm)))
    return model


def test_every_kind_has_a_file():
    assert {load(path)[1]["kind"] for path in FILES} == {"features", "logits", "train"}


@pytest.mark.parametrize("path", of_kind("features"))
def test_features(path):
    archive, meta = load(path)
    with torch.no_grad():
        outputs = build(meta).eval()(golden_input(meta))
    for i, output in enumerate(outputs):
        assert output.shape == archive[f"stage{i}"].shape
        assert relative_error(output, archive[f"stage{i}"]) < 1e-5


@pytest.mark.parametrize("path", of_kind("logits"))
def test_logits(path):
    """The classifier's final norm is norm3; its head is a linear layer on the mean."""
    archive, meta = load(path)
    state = convert_state_dict(classifier_state(meta["arch"]))
    head = {key: state.pop(key) for key in ("head.weight", "head.bias")}
    model = HireMLP(meta["arch"], out_indices=(3,)).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        (features,) = model(golden_input(meta))
        logits = F.linear(features.mean((2, 3)), head["head.weight"], head["head.bias"])
    assert relative_error(logits, archive["logits"]) < 1e-5


@pytest.mark.parametrize("path", of_kind("logits"))
def test_logits_of_the_mmpretrain_classifier(path, tmp_path, fork_tool):
    """The converter's classifier file, in an mmpretrain model, gives the reference's logits."""
    archive, meta = load(path)
    torch.save({"model": classifier_state(meta["arch"])}, tmp_path / "official.pth")
    done = fork_tool(
        "tools/convert_checkpoint.py",
        tmp_path / "official.pth",
        tmp_path / "converted.pth",
        "--classifier",
    )
    assert done.returncode == 0, done.stderr
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        model = MODELS.build(
            dict(
                type="ImageClassifier",
                backbone=dict(type="HireMLP", arch=meta["arch"], out_indices=(3,)),
                neck=dict(type="GlobalAveragePooling"),
                head=dict(type="LinearClsHead", num_classes=1000, in_channels=512),
            )
        ).eval()
    model.load_state_dict(torch.load(tmp_path / "converted.pth")["state_dict"])
    with torch.no_grad():
        logits = model(golden_input(meta), mode="tensor")
    assert relative_error(logits, archive["logits"]) < 1e-5


@pytest.mark.parametrize("path", of_kind("train"))
def test_training_step(path):
    archive, meta = load(path)
    model = build(meta).train()
    outputs = model(golden_input(meta))
    for i, output in enumerate(outputs):
        assert relative_error(output, archive[f"stage{i}"]) < 1e-4
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
