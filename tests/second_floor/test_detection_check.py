"""Does the check of a detector's file find what is wrong in it, and nothing else?"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from hire_mlp_mm.deploy.check import Agreement, compare_detections, compare_one
from hire_mlp_mm.deploy.formats import CheckError, as_sequence
from hire_mlp_mm.deploy.forms import Form, form_of
from hire_mlp_mm.errors import UserError
from tests.second_floor.test_forms_of_export import built, one_stage, two_stages

CFG = ConfigDict(score_thr=0.3, nms=dict(type="nms", iou_threshold=0.5), max_per_img=4)


@pytest.fixture(scope="module")
def mask_form() -> Form:
    return form_of(built(two_stages("mask_rcnn")), pasted=True)


def run(form: Form, image: torch.Tensor) -> list[torch.Tensor]:
    """Run a form as a file that was written of it."""
    with torch.no_grad():
        return [x.clone() for x in as_sequence(form.module(image))]


def test_what_is_right_passes(mask_form):
    said: list[str] = []
    agreement = compare_detections(
        lambda image: run(mask_form, image), mask_form, False, None, said.append
    )
    assert agreement.images == 4
    assert agreement.detections > 20
    assert not agreement.explained
    assert said == [str(agreement)]
    assert said[0].startswith(f"4 images, {agreement.detections} detections: largest differences ")


def box(found: dict[str, Any]) -> None:
    found["boxes"][:, 1] += 0.1


def score(found: dict[str, Any]) -> None:
    found["scores"][1] += 3e-4


def label(found: dict[str, Any]) -> None:
    found["labels"][0] = (found["labels"][0] + 1) % 5


def mask(found: dict[str, Any]) -> None:
    found["masks"][1, 3, 4] += 2e-3


def no_number(found: dict[str, Any]) -> None:
    found["masks"][1, 3, 4] = torch.nan


def pixels(found: dict[str, Any]) -> None:
    found["pasted"][0] ^= 1


def lost(found: dict[str, Any]) -> None:
    for name in found:
        found[name] = found[name][1:]


def twice(found: dict[str, Any]) -> None:
    for name in found:
        found[name] = found[name][[0, *range(len(found[name]))]]


FAULTS = {
    box: r"too much is on one side alone: .* of equal scores",
    score: "a box of class",
    label: "a box of class",
    mask: r"a mask differs by 2.0e-03; expected at most 1e-03",
    no_number: "a mask differs by nan",
    pixels: r"\d+ pixels of pasted masks differ",
    lost: "a box of class . is missing in the file: ",
    twice: "a box of class . is the file's alone: ",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_found(fault, mask_form):
    def runner(image):
        found = dict(zip(mask_form.names, run(mask_form, image), strict=True))
        fault(found)
        return list(found.values())

    with pytest.raises(CheckError, match=FAULTS[fault]) as error:
        compare_detections(runner, mask_form, False, None, print)
    assert fault is box or str(error.value).startswith("a random image (64 x 64): ")
    assert "\n" not in str(error.value)


def test_a_check_that_finds_nothing_is_none():
    form = form_of(built(one_stage("retinanet", score_thr=2.0)))
    with pytest.raises(CheckError, match="nothing is found in 4 random images"):
        compare_detections(lambda image: run(form, image), form, False, None, print)


@pytest.mark.parametrize("part", ["backbone", "neck", "rpn_head", "roi_head.bbox_head"])
def test_a_changed_weight_is_found(part):
    form = form_of(built(two_stages("faster_rcnn")))
    other = form_of(built(two_stages("faster_rcnn")))
    weight = next(other.model.get_submodule(part).parameters())
    weight *= 1.1
    with pytest.raises(CheckError, match=r"a box of class|too much is on one side alone"):
        compare_detections(lambda image: run(other, image), form, False, None, print)


# What explains a detection on one side alone -----------------------------------------------------

# x1, y1, x2, y2, score, label
FARS = [(100, 100, 120, 120, 0.9, 0)] * 3
HALF = (0, 0, 10, 10), (0, 0, 10, 20)  # overlap by 0.5
Box = tuple[float, ...]


def instances(found: list[Box]) -> dict[str, torch.Tensor]:
    x = torch.tensor(found).reshape(-1, 6)
    return dict(boxes=x[:, :4], scores=x[:, 4], labels=x[:, 5].long())


def compare(found: Any, wanted: Any, agreement: Agreement) -> None:
    """Compare detections of a model that has nothing but `CFG`."""
    model = torch.nn.Module()
    model.bbox_head = torch.nn.Module()
    model.bbox_head.test_cfg = CFG
    named = dict(zip(("bboxes", "scores", "labels"), wanted.values(), strict=True))
    form = Form("detection", model, list(found), model)
    compare_one(found, InstanceData(**named), None, form, agreement)


@pytest.mark.parametrize(
    ("more", "both", "reason"),
    [
        ((0, 0, 10, 10, 0.30005, 0), [], "at the score threshold"),
        ((0, 0, 10, 10, 0.3002, 0), [], None),
        ((0, 0, 10, 10, 0.5, 0), [*FARS, (50, 50, 70, 70, 0.50005, 1)], "at the limit of boxes"),
        ((0, 0, 10, 10, 0.5, 0), [*FARS, (50, 50, 70, 70, 0.4, 1)], None),
        ((*HALF[0], 0.6, 0), [(*HALF[1], 0.7, 0)], "at the threshold of the suppression"),
        ((*HALF[0], 0.6, 0), [(*HALF[1], 0.7, 1)], None),  # another class suppresses nothing
        ((*HALF[0], 0.6, 0), [(*HALF[1], 0.5, 0)], None),  # nor does a lower score
        # Another that both sides have is no reason for one more.
        ((0, 0, 10, 10, 0.6, 0), [(1, 0, 11, 10, 0.60005, 0)], None),
        ((0, 0, 10, 10, 0.6, 0), [(1, 0, 11, 10, 0.7, 0)], None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("side", ["the file's alone", "missing in the file"])
def test_what_explains_a_difference(more, both, reason, side):
    found, wanted = instances([*both, more]), instances(both)
    if side == "missing in the file":
        found, wanted = wanted, found
    agreement = Agreement()
    if reason is None:
        with pytest.raises(CheckError, match=side):
            compare(found, wanted, agreement)
        return
    compare(found, wanted, agreement)
    assert agreement.explained == {reason: 1}
    assert agreement.detections == len(both)
    assert str(agreement).endswith(f"; on one side alone: 1 {reason}")


@pytest.mark.parametrize(("score", "may_be"), [(0.60005, True), (0.6002, False)])
def test_of_two_that_are_tied_each_side_may_have_another(score, may_be):
    found, wanted = instances([(0, 0, 10, 10, 0.6, 0)]), instances([(1, 0, 11, 10, score, 0)])
    agreement = Agreement()
    if may_be:
        compare(found, wanted, agreement)
        assert agreement.explained == {"of equal scores": 2}
    else:
        with pytest.raises(CheckError, match="a box of class 0 is the file's alone"):
            compare(found, wanted, agreement)


SMALL = cv2.imencode(".png", np.zeros((20, 40, 3), np.uint8))[1].tobytes()


# Photographs -------------------------------------------------------------------------------------


@pytest.fixture
def photographs(tmp_path):
    """A folder with two photographs, one of them in a folder within, and a text."""
    random = np.random.default_rng(0)
    (tmp_path / "more").mkdir()
    for name in ("a.png", "more/b.png"):
        cv2.imwrite(str(tmp_path / name), random.integers(0, 256, (70, 100, 3), np.uint8))
    (tmp_path / "text.txt").write_text("not an image")
    return tmp_path


def test_photographs(photographs):
    form, shapes = form_of(built(one_stage("retinanet"))), []

    def runner(image):
        shapes.append(tuple(image.shape))
        return run(form, image)

    agreement = compare_detections(runner, form, False, photographs, print)
    assert agreement.images == 2
    assert shapes == [(1, 3, 70, 100), (1, 3, 33, 41)]  # as it is, and smaller with odd sides


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "no photographs in it; expected a folder with images"),
        (b"not an image", "broken.png cannot be read as an image; take it out of the folder"),
        (SMALL, "broken.png is 20 x 40; expected sides from 32 up; take it out"),
    ],
)
def test_photographs_that_are_none(content, line, tmp_path):
    if content is not None:
        (tmp_path / "broken.png").write_bytes(content)
    form = form_of(built(one_stage("retinanet")))
    with pytest.raises(UserError, match=line):
        compare_detections(lambda image: run(form, image), form, False, tmp_path, print)
