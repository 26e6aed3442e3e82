"""Do heat maps lie where a decision comes from, and receptive fields where they must?"""

from __future__ import annotations

import sys

import numpy as np
import pytest
import receptive_fields as page
import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from PIL import Image
from torch import nn

from hire_mlp_mm import HireMLPNet, Predictor
from hire_mlp_mm.errors import UserError
from hire_mlp_mm.explain import compare_fields, explain, receptive_fields
from hire_mlp_mm.explain.fields import Field
from hire_mlp_mm.explain.heat import Heat, areas_found
from hire_mlp_mm.explain.panels import panels
from hire_mlp_mm.explain.plots import by_stride
from hire_mlp_mm.prediction.results import choose
from tests.conftest import NANO
from tests.second_floor.test_predict import (
    CLASSES,
    GOOD,
    MODELS_OF,
    SEVEN,
    clip,  # noqa: F401
    files_of,
    photographs,  # noqa: F401
    save,
    work_dirs,  # noqa: F401
)

# Heat maps --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def explainer_of(work_dirs):  # noqa: F811
    """Make an explainer of a task's small model, which finds something in any image."""
    pytest.importorskip("torchcam")
    from hire_mlp_mm.explain import Explainer

    def make(task: str, **options):
        thr = dict(score_thr=0.001) if task == "detection" else {}
        return Explainer(work_dirs[task], **thr, **options)

    return make


@pytest.mark.parametrize("task", MODELS_OF)
def test_a_map_for_each_class(task, explainer_of, tmp_path):
    image = save(tmp_path / "a.png", 3, width=120, height=72)
    names = SEVEN[:2] if task == "classification" else CLASSES
    many = {"model.test_cfg.rcnn.max_per_img": 100} if task == "detection" else {}
    explainer = explainer_of(task, classes=names, cfg_options=many)
    (found,) = explainer(image)
    assert {heat.name for heat in found.results} <= set(names)
    assert len(found.results) > 1
    for heat in found.results:
        assert heat.map.shape == found.image.shape[:2]
        assert heat.map.min() >= 0
        assert 0.5 < heat.map.max() <= 1
        if task == "detection":
            assert len(heat.boxes) == int(heat.title.split()[-2])
        if task == "segmentation":
            assert f"{100 * heat.area.mean():.0f}%" in heat.title
    first, second = found.results[:2]
    assert np.abs(first.map - second.map).max() > 0.05
    picture = explainer.draw(found)
    assert picture.shape[1] > (len(found.results) + 1) * found.image.shape[1]


def test_a_classifier_explains_its_best_class(explainer_of, work_dirs, tmp_path):  # noqa: F811
    image = save(tmp_path / "a.png", 3)
    (found,) = explainer_of("classification")(image)
    (said,) = Predictor(work_dirs["classification"])(image)
    assert [heat.name for heat in found.results] == [said.results[0]["class"]]


class Corner(nn.Module):
    """Hand on one token of the last map, in the place of the mean over all."""

    def __init__(self, y: int, x: int) -> None:
        super().__init__()
        self.y, self.x = y, x

    def forward(self, maps):
        return (maps[-1][:, :, self.y, self.x],)


@pytest.mark.parametrize(("y", "x"), [(0, 0), (0, -1), (-1, 0), (-1, -1)])
def test_the_heat_is_in_the_corner_that_decides(y, x, explainer_of, tmp_path):
    image = save(tmp_path / "a.png", 3, width=224, height=224)
    explainer = explainer_of("classification")
    explainer.model.neck = Corner(y, x)
    (found,) = explainer(image)
    heat = found.results[0].map
    halves = np.array([[heat[:112, :112], heat[:112, 112:]], [heat[112:, :112], heat[112:, 112:]]])
    means = halves.mean((2, 3))
    assert means[y, x] > 2 * (means.sum() - means[y, x]) / 3


def test_what_is_cropped_off_stays_cold(explainer_of, tmp_path):
    image = save(tmp_path / "a.png", 3, width=400, height=100)
    (found,) = explainer_of("classification")(image)
    heat = found.results[0].map
    seen = 100 * 224 / 256  # of the middle
    cold = int(200 - seen / 2) - 2
    assert heat[:, :cold].max() == heat[:, -cold:].max() == 0
    assert heat[:, cold:-cold].max() > 0.5


def test_the_neck_of_a_detector_decides(explainer_of, tmp_path):
    """A level that is put out has no part in a map."""
    image = save(tmp_path / "a.png", 3, width=128, height=128)
    explainer = explainer_of("detection")
    (found,) = explainer(image)
    convs = explainer.model.neck.fpn_convs
    for conv in convs:
        nn.init.zeros_(conv.conv.weight)
        nn.init.zeros_(conv.conv.bias)
    (blind,) = explainer(image)
    assert max(heat.map.max() for heat in found.results) > 0.5
    assert all(heat.map.max() == 0 for heat in blind.results)


def test_pictures_in_a_new_folder(work_dirs, photographs, tmp_path):  # noqa: F811
    pytest.importorskip("torchcam")
    lines: list[str] = []
    out = tmp_path / "out"
    done = explain(work_dirs["segmentation"], photographs, out, say=lines.append)
    assert (done.images, len(done.faults)) == (4, 1)
    assert files_of(out) == sorted(f"pictures/{name}" for name in GOOD)
    size = Image.open(out / "pictures/a.png").size
    assert size[0] > size[1] > 64
    with pytest.raises(UserError, match="is not empty; name a new folder"):
        explain(work_dirs["segmentation"], photographs, out)


def test_what_cannot_be_explained(work_dirs, clip, tmp_path, monkeypatch):  # noqa: F811
    image, out = save(tmp_path / "a.png"), tmp_path / "out"
    with pytest.raises(UserError, match="is a video; expected images"):
        explain(work_dirs["detection"], clip, out)
    with pytest.raises(UserError, match="is exported and has no gradients; name the checkpoint"):
        explain("a.onnx", image, out)
    monkeypatch.delitem(sys.modules, "torchcam.methods", raising=False)
    monkeypatch.setitem(sys.modules, "torchcam", None)
    with pytest.raises(UserError, match=r"torchcam is not installed.*pip install torchcam"):
        explain(work_dirs["detection"], image, out)
    assert not out.exists()


def test_an_unknown_class_is_named(explainer_of):
    with pytest.raises(UserError, match=r"no class 'circl'; near it: circle"):
        explainer_of("detection", classes=["circl"])


@pytest.mark.parametrize("cut", [torch.no_grad(), torch.inference_mode(), torch.detach])
def test_a_model_without_gradients(cut, explainer_of, tmp_path):
    explainer = explainer_of("classification")
    forward = explainer.model.head.forward
    by_output = lambda maps: cut(forward(maps))  # noqa: E731
    explainer.model.head.forward = by_output if cut is torch.detach else cut(forward)
    with pytest.raises(UserError, match="cannot be explained by LayerCAM: its scores have no grad"):
        list(explainer(save(tmp_path / "a.png")))


@pytest.mark.parametrize("classes", [["land", "water"], ["land"]])
def test_a_sigmoid_head_of_one_output(classes):
    """Label 1 has its logit, label 0 the negative; a label beyond the classes has no name."""
    logits = torch.linspace(-4, 4, 48).reshape(1, 6, 8).requires_grad_()
    scores = logits.sigmoid()  # as MMSegmentation hands them on
    found = SegDataSample(
        seg_logits=PixelData(data=scores), pred_sem_seg=PixelData(data=(scores > 0.3).float())
    )
    water = (scores[0] > 0.3).numpy()
    targets = areas_found(found, choose(None, None, classes, "segmentation"), classes)
    assert [heat.name for _, heat in targets] == classes
    for (score, heat), area, sign in zip(targets, (~water, water), (-1, 1), strict=False):
        assert (heat.area == area).all()
        assert score.item() == pytest.approx(
            sign * logits.detach()[0][area].mean().item(), abs=1e-4
        )
        (gradient,) = torch.autograd.grad(score, logits, retain_graph=True)
        expected = sign * area / area.sum()
        np.testing.assert_allclose(gradient[0].numpy(), expected, atol=1e-5)


def panels_of(height: int, width: int, number: int = 2) -> np.ndarray:
    heat = Heat(
        0, "cat", np.zeros((height, width), np.float32), "cat: 1 box", np.array([[0, 0, 9, 9]])
    )
    image = np.full((height, width, 3), 200, np.uint8)
    return panels(image, [heat] * number, [(255, 0, 0)] * number)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (480, 3 * 640 + 2 * 6)),
        ((72, 120), (224, 3 * 373 + 2 * 6)),  # a small one grows
        ((100, 2000), (3 * 96 + 2 * 6, 1280)),  # one below the other
        ((2000, 100), (1280, 3 * 224 + 2 * 6)),
        ((1, 1000), (3 * 96 + 2 * 6, 1280)),
    ],
)
def test_the_size_of_panels(size, expected):
    assert panels_of(*size).shape[:2] == expected


def test_a_name_does_not_hide_a_narrow_image():
    picture = panels_of(100, 2000)
    assert (picture[:32] == 255).all()  # above the photograph, which is 64 pixels high
    assert (picture[32:96] == 200).all()
    panel = picture[102:198]
    assert (panel[:15, :30] == [255, 0, 0]).all(2).any()  # the name's bar
    assert not (panel[32:, 40:] == [255, 0, 0]).all(2).any()


# Receptive fields -------------------------------------------------------------------------------


def rows_and_columns(field) -> tuple[list[int], list[int]]:
    """The rows and the columns of the pixels that move a token at all."""
    return tuple(np.flatnonzero(field.values.any(axis=axis)).tolist() for axis in (1, 0))


def images(number: int = 3, size: tuple[int, int] = (64, 64)):
    return [torch.randn(3, *size) for _ in range(number)]


class Cut(nn.Module):
    """A layer that lets no gradient through."""

    def forward(self, x):
        return x.detach()


class Maps(nn.Sequential):
    """A network of one map."""

    def forward(self, x):
        return (super().forward(x),)


@pytest.mark.parametrize(
    ("layers", "stride", "pixels"),
    [
        ([nn.Conv2d(3, 4, 4, 4)], 4, range(32, 36)),
        ([nn.Conv2d(3, 4, 3, 1, 1)], 1, range(31, 34)),
        # A token of the second covers 3 of the first, which are 2 pixels apart.
        ([nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)], 4, range(29, 36)),
    ],
)
def test_the_field_of_convolutions(layers, stride, pixels):
    (field,) = receptive_fields(Maps(*layers), images())
    assert field.stride == stride
    assert rows_and_columns(field) == (list(pixels), list(pixels))
    assert field.values.sum() == pytest.approx(1)
    assert len(pixels) <= field.side(1) < 2 * len(pixels)


def test_the_square_that_holds_a_share():
    values = np.zeros((64, 64))
    values[18:23, 28:33] = 0.5 / 24
    values[20, 30] = 0.5
    field = Field(4, values)
    assert field.centre == (20, 30)
    assert (field.side(0.5), field.side(0.6), field.side(0.9), field.side(1)) == (1, 3, 5, 5)


def test_the_field_is_the_gradient():
    """Of a layer without weights to mix: each pixel of the token counts as much as its weight."""
    conv = nn.Conv2d(3, 1, 2, 2)
    with torch.no_grad():
        conv.weight[:] = torch.tensor([[1.0, 2.0], [-3.0, 4.0]])
    (field,) = receptive_fields(Maps(conv), images(size=(8, 8)))
    np.testing.assert_allclose(field.values[4:6, 4:6], [[0.1, 0.2], [0.3, 0.4]], rtol=1e-6)


@pytest.mark.parametrize("held", [False, True])
def test_the_cross_of_a_block(held):
    """One block sees a row and a column of tokens, and by its gate's mean all of the image."""
    net = HireMLPNet(NANO).eval()
    if held:
        page.hold_gates(net)
    (field,) = receptive_fields(page.Blocks(net, 0, [0]), images())
    assert field.stride == 4
    across, down, aslant = (field.values[at] for at in ((34, 46), (46, 34), (46, 46)))
    assert min(across, down) > 10 * aslant
    assert (aslant == 0) == held
    assert (field.values[34, 2] == 0) == held  # far off, in the same row
    assert field.values.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("net", "number", "line"),
    [
        (Maps(nn.Conv2d(3, 4, 1)), 0, "no image to measure a receptive field with"),
        (Maps(nn.Conv2d(3, 4, 1), nn.Threshold(1e9, 0)), 1, "a token at the centre moves with no"),
        (Maps(nn.Conv2d(3, 4, 1), nn.Flatten()), 1, r"Maps gives \(1, 16384\); expected maps"),
        (Maps(nn.Conv2d(3, 4, 1), Cut()), 1, "Maps lets no gradient through to the image"),
        (Maps(Cut(), nn.Conv2d(3, 4, 1)), 1, "Maps lets no gradient through to the image"),
    ],
)
def test_no_field(net, number, line):
    with pytest.raises(UserError, match=line):
        receptive_fields(net, images(number))


def test_a_model_without_a_backbone(work_dirs, tmp_path, monkeypatch):  # noqa: F811
    """As one that holds its detector elsewhere."""
    init = Predictor.__init__

    def bare(self, *args, **options):
        init(self, *args, **options)
        self.model = nn.Sequential(self.model)

    monkeypatch.setattr(Predictor, "__init__", bare)
    image = save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"\.py: Sequential has no `backbone` to look at"):
        compare_fields(work_dirs["segmentation"], image, tmp_path / "out")


def test_fields_of_one_stride_stand_in_one_column():
    fields = {stride: Field(stride, np.ones((1, 1))) for stride in (4, 8, 16)}
    placed = by_stride({"a": [fields[8], fields[16]], "b": [fields[4], fields[16], fields[16]]})
    assert placed["a"] == [None, fields[8], fields[16], None]
    assert placed["b"] == [fields[4], None, fields[16], fields[16]]


def test_fields_side_by_side(work_dirs, photographs, tmp_path):  # noqa: F811
    lines: list[str] = []
    out = tmp_path / "out"
    inputs = [photographs / "a.png", broken := photographs / "z/broken.jpg", photographs / "b.jpg"]
    others = [str(work_dirs["segmentation"]), "resnet-50"]
    done = compare_fields(work_dirs["detection"], inputs, out, against=others, say=lines.append)
    assert (done.images, done.faults) == (2, [f"{broken}: the JPEG is truncated"])
    found = done.fields
    assert list(found) == ["detection", "segmentation", "resnet-50, random weights"]
    assert [one.stride for one in found["segmentation"]] == [4, 8, 16, 32]
    assert files_of(out) == ["fields.csv", "fields.png"]
    rows = (out / "fields.csv").read_text().splitlines()
    assert rows[0] == "network,stride,half_px,90%_px"
    assert len(rows) == len(lines) == 13
    widest = found["resnet-50, random weights"][-1]
    assert widest.side(0.5) > 64  # its blocks work, which begin a training with weights of 0
    assert lines[0] == done.faults[0]  # once, for all networks
    assert lines[1].startswith("detection, stride 4: half within ")
    with pytest.raises(UserError, match=r"--against swim-t: expected .* swin-t"):
        compare_fields(work_dirs["detection"], inputs, tmp_path / "no", against=["swim-t"])
    with pytest.raises(UserError, match="of 1 images none can be read"):
        compare_fields(work_dirs["detection"], broken, tmp_path / "no")
    assert not (tmp_path / "no").exists()
