"""Does the network compute what the reference implementation computes?"""

from __future__ import annotations

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from torch.nn import functional as F

from hire_mlp_mm import HireMLP
from hire_mlp_mm.names import convert_state_dict
from tests.reference import (
    FILES,
    check_maps,
    check_training_step,
    classifier_state,
    golden_input,
    golden_network,
    load,
    of_kind,
    relative_error,
)


def build(meta) -> HireMLP:
    return golden_network(meta, HireMLP)


def test_every_kind_has_a_file():
    assert {load(path)[1]["kind"] for path in FILES} == {"features", "logits", "train"}


@pytest.mark.parametrize("path", of_kind("features"))
def test_features(path):
    archive, meta = load(path)
    with torch.no_grad():
        outputs = build(meta).eval()(golden_input(meta))
    check_maps(outputs, archive, 1e-5)


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
    check_training_step(model, golden_input(meta), archive, meta)
