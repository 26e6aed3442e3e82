"""Does the bench of whole models run what it says, and are the parts of a run all of it?"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from hire_mlp_mm.bench.candidates import Settings
from hire_mlp_mm.bench.report import setting
from hire_mlp_mm.bench.wholes import KEPT, Parts, Whole, picture, predict, random_model
from hire_mlp_mm.engine import load_config
from hire_mlp_mm.errors import UserError
from hire_mlp_mm.lean import RecomputedBlock
from tests.conftest import ROOT
from tests.second_floor.test_predict import MODELS_OF

NANO_RETINANET = ROOT / "configs/retinanet_hire_nano_shapes.py"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Callable[..., Whole]:
    """Build a candidate of a task's small model."""
    folder = tmp_path_factory.mktemp("configs")

    def build(task: str, name: str, **settings) -> Whole:
        config = folder / f"{task}.py"
        config.write_text(MODELS_OF[task])
        common = dict(config=str(config), size=(64, 96), batch=2, threads=1)
        return Whole(name, Settings(**common, **settings))

    return build


ROI_PARTS = ["bbox_roi_extractor", "bbox_head", "mask_roi_extractor", "mask_head"]
PARTS = dict(
    detection=["neck", "rpn_head", *ROI_PARTS],
    segmentation=["decode_head"],
    classification=["neck", "head"],
)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("task", PARTS)
def test_the_parts_of_a_run_are_all_of_it(task, train, whole):
    candidate = whole(task, "plain", train=train)
    figures, parts = candidate.measure(), candidate.shares()
    names = {"data_preprocessor", "backbone", *PARTS[task]}
    more = ["assignment, losses", "backward pass", "optimizer"] if train else ["post-processing"]
    auxiliary = ["auxiliary_head"] * (train and task == "segmentation")
    assert parts.keys() == {*names, *more, *auxiliary}
    assert min(parts.values()) > 0  # the last is what the others leave: nothing counts twice
    if train and task != "detection":  # which trains on other RoIs than it tests on
        assert figures.macs > 2 * whole(task, "plain").figures.macs > 0


def test_a_part_within_another_counts_once():
    class Thing:
        def outer(self):
            self.inner()

        def inner(self):
            torch.rand(100, 100).sum()

    thing, parts = Thing(), Parts(torch.zeros(()))
    parts.watch(thing, "inner", "inner")
    parts.watch(thing, "outer", "outer")
    assert parts.measure(thing.outer, "rest").keys() == {"outer", "rest"}
    assert parts.measure(thing.inner, "rest").keys() == {"inner", "rest"}


def is_fused(model) -> bool:
    return not any(isinstance(m, _BatchNorm) for m in model.modules())


def is_channels_last(model) -> bool:
    weight = model.neck.fpn_convs[0].conv.weight
    return weight.stride() != weight.contiguous().stride()


FORMS = {
    "fused": (False, is_fused),
    "plain+channels_last": (False, is_channels_last),
    "plain+cp": (True, lambda model: any(isinstance(m, RecomputedBlock) for m in model.modules())),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_what_its_name_says(name, whole):
    train, holds = FORMS[name]
    candidate, plain = (whole("detection", one, train=train) for one in (name, "plain"))
    candidate.step(candidate.image)
    assert holds(candidate.model)
    assert not holds(plain.model)


@pytest.mark.parametrize(
    ("task", "peer", "parameters"),
    [("detection", "swin-t", 27.5), ("segmentation", "resnet-50", 23.5),
     ("classification", "convnext-t", 27.8)],
)  # fmt: skip
def test_another_backbone_trains_in_the_same_model(task, peer, parameters, whole):
    """Neck or heads read its maps; its parameters are the ones that the backbone alone has."""
    candidate = whole(task, peer, train=True)
    found = sum(p.numel() for p in candidate.model.backbone.parameters()) / 1e6
    assert found == pytest.approx(parameters, abs=0.1)
    before = [p.detach().clone() for p in candidate.model.parameters()]
    candidate.step(candidate.image)
    after = list(candidate.model.parameters())
    assert all(p.isfinite().all() for p in after)
    changed = sum(not torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert changed > 0.9 * len(after)


def test_a_detector_with_random_weights_keeps_boxes():
    cfg = load_config(str(NANO_RETINANET))
    image = picture(96, 128)
    found = predict(random_model(cfg, image), "mmdet", [image])[0].pred_instances
    assert len(found) == KEPT


def test_a_config_of_another_host_is_refused(tmp_path):
    config = tmp_path / "pose.py"
    config.write_text('default_scope = "mmpose"\nmodel = dict(type="TopdownPoseEstimator")\n')
    with pytest.raises(UserError, match=r"pose\.py is of mmpose; expected one of mmdet, mmseg"):
        Whole("plain", Settings(config=str(config), size=(64, 96)))


def test_the_heading_has_the_changes_of_the_config():
    told = setting(Settings(config="mine.py", cfg_options={"model.neck": None}))
    assert told["model"] == "mine.py model.neck=None"


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--train"]], ids=["inference", "training"])
def test_the_tables(options, run_tool, tmp_path):
    out = tmp_path / "figures.json"
    forms = ["plain", "plain:bfloat16", *(["plain+cp"] if options else ["fused:bfloat16"])]
    command = "import sys; sys.argv[0] = 'hire-mlp'; from hire_mlp_mm.cli import main; main()"
    done = run_tool(
        "-c", command, "bench", NANO_RETINANET, "--size", "64x96", "--runs", "2", "--json", out,
        "--forms", *forms, *options, "--against", "resnet-50",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    candidates = json.loads(out.read_text())["candidates"]
    assert [c["name"] for c in candidates] == [*(f.partition(":")[0] for f in forms), "resnet-50"]
    assert all(len(c["times"]) == 2 and c["limit"] > 0 and c["peak"] > 0 for c in candidates)
    head, figures, parts = done.stdout.strip().split("\n\n")
    assert head.startswith(f"model {NANO_RETINANET}, size 64x96, batch 1")
    assert "of plain" in figures
    rows = [row.split("|")[1].strip() for row in parts.splitlines()[2:]]
    assert rows == [*candidates[0]["parts"]]
