"""Does an exported file give PyTorch's numbers, for every size, and does a wrong one not stay?"""

from __future__ import annotations

import copy
import errno
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmpretrain import get_model
from torch.nn import functional as F

from hire_mlp_mm import HireMLP, cli, deploy
from hire_mlp_mm.deploy import exporting, formats, tracing
from hire_mlp_mm.deploy.exporting import Preprocessed, randomize
from hire_mlp_mm.deploy.forms import form_of
from hire_mlp_mm.errors import UserError
from tests.conftest import ROOT
from tests.second_floor import test_forms_of_export as forms_tests

CAN_EXPORT = tracing.can_trace()
exports = pytest.mark.skipif(not CAN_EXPORT, reason="torch is too old for sizes that are free")

# Other sizes and batches than the tool's own: smallest, odd, sides far apart.
IMAGES = ((1, 3, 32, 35), (3, 3, 129, 67), (1, 3, 50, 260))
FIELDS = dict(region_sizes=(4, 3), shift_periods=(2, 1), shift_steps=(2, 1), mlp_ratios=(2, 2))
TWO_STAGES = dict(depths=(1, 1), dims=(8, 12), **FIELDS)
ONE_STAGE = dict(depths=(2,), dims=(8,), **{key: value[:1] for key, value in FIELDS.items()})
DETECTOR = """
default_scope = "mmdet"
model = dict(
    type="RetinaNet",
    data_preprocessor=dict(type="DetDataPreprocessor", mean=[1.0, 2.0, 3.0], std=[4.0] * 3),
    backbone=dict(type="HireMLP", out_indices=(0,), init_cfg=dict(checkpoint="nowhere")),
)
"""
UPERNET = f"""
_base_ = "{ROOT}/configs/_base_/upernet.py"
default_scope = "mmseg"
model = dict(
    backbone=dict(arch=dict(_delete_=True, **{TWO_STAGES}), out_indices=(0, 1)),
    decode_head=dict(in_channels=[8, 12], in_index=[0, 1], channels=8, num_classes=5),
    auxiliary_head=dict(in_channels=12, in_index=1, channels=8, num_classes=5),
)
"""
# The smallest whole detector: the head reads the only map of the backbone.
WHOLE_DETECTOR = f"""
_base_ = "{ROOT}/configs/retinanet_hire_nano_shapes.py"
model = dict(
    backbone=dict(arch=dict(_delete_=True, **{ONE_STAGE}), out_indices=(0,)),
    neck=None,
    bbox_head=dict(
        in_channels=8, feat_channels=8, stacked_convs=1,
        anchor_generator=dict(scales_per_octave=1, ratios=[1.0], strides=[4]),
    ),
)
"""
NO_FORM = """
_base_ = "./whole.py"
model = dict(bbox_head=dict(_delete_=True, type="FoveaHead", num_classes=3, in_channels=8))
"""
SEMANTIC_FPN = f"""
_base_ = "{ROOT}/configs/_base_/semantic_fpn.py"
default_scope = "mmseg"
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, **{TWO_STAGES}), out_indices=(0, 1), shift_padding="zero",
        region_padding="replicate",
    ),
    neck=dict(in_channels=[8, 12], out_channels=8, num_outs=2),
    decode_head=dict(
        in_channels=[8] * 2, in_index=[0, 1], feature_strides=[4, 8], channels=8, num_classes=5,
        align_corners=True,
    ),
)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder to export into, with configs beside it."""
    config = DETECTOR.replace('type="HireMLP"', f'type="HireMLP", arch={ONE_STAGE}')
    (tmp_path / "detector.py").write_text(config)
    (tmp_path / "whole.py").write_text(WHOLE_DETECTOR)
    (tmp_path / "upernet.py").write_text(UPERNET)
    (tmp_path / "semantic_fpn.py").write_text(SEMANTIC_FPN)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "out"


def export(*arguments: object) -> None:
    """Run the command in this process."""
    cli.main(["export", "--size", "32x64", *map(str, arguments)])


def failure(capsys, *arguments: object) -> tuple[object, str]:
    """How the command ends that cannot do what it is asked: (exit status, its last line)."""
    with pytest.raises(SystemExit) as stop:
        export(*arguments)
    return stop.value.code, capsys.readouterr().err


def randomized(model):
    """A model with statistics and biases as after training, and its weights in `weights.pth`."""
    randomize(model)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    torch.save({"state_dict": model.state_dict()}, "weights.pth")
    return model.eval().requires_grad_(False)


def assert_equal(path: Path, model) -> None:
    """A file's outputs are the model's, at sizes at which nobody has looked at it."""
    run = formats.open_file(path)
    for shape in IMAGES:
        image = torch.randn(shape)
        expected = formats.as_sequence(model(image))
        found = run(image)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert one.shape == other.shape
            assert one.numpy() == pytest.approx(other.numpy(), abs=1e-5 * float(other.abs().max()))


@exports
@pytest.mark.parametrize(
    "paddings", [("circular", "circular"), ("circular", "replicate"), ("zero", "zero")]
)
def test_backbone_of_a_detector(paddings, folder, capsys):
    paddings = dict(zip(("shift_padding", "region_padding"), paddings, strict=True))
    model = randomized(HireMLP(ONE_STAGE, out_indices=(0,), **paddings))
    options = [f"model.backbone.{key}={value}" for key, value in paddings.items()]
    out = folder / "backbone.onnx"
    export("detector.py", "weights.pth", out, "--backbone", "--cfg-options", *options)
    assert_equal(out, model)
    said = capsys.readouterr().out
    assert said.count("largest relative difference") == 3
    phases = ("reading detector.py", "exporting", "checking", "measuring", "wrote")
    assert sorted(phases, key=said.index) == list(phases)
    assert "warning" not in said
    assert [path.name for path in folder.iterdir()] == ["backbone.onnx"]


@exports
def test_pt2_of_the_inference_form(folder):
    model = randomized(HireMLP(ONE_STAGE, out_indices=(0,)))
    export("detector.py", "weights.pth", folder / "backbone.pt2", "--backbone", "--fuse")
    assert_equal(folder / "backbone.pt2", model)


@exports
@pytest.mark.parametrize("name", ["upernet", "semantic_fpn"])
def test_segmentor(name, folder):
    """Whole, up to what MMSegmentation calls its logits, at the size of the image."""
    import onnxruntime

    with DefaultScope.overwrite_default_scope("mmseg"):
        model = randomized(MODELS.build(Config.fromfile(f"{name}.py").model))
    out = folder / f"{name}.onnx"
    export(f"{name}.py", "weights.pth", out)
    assert_equal(
        out, lambda image: model.encode_decode(image, [dict(img_shape=image.shape[2:])])
    )  # fmt: skip
    session = onnxruntime.InferenceSession(out)
    assert [one.shape for one in session.get_inputs()] == [["batch", 3, "height", "width"]]
    assert [one.name for one in session.get_outputs()] == ["logits"]
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["channels"] == "RGB"
    assert facts["mean"] == "[123.675, 116.28, 103.53]"
    assert facts["std"] == "[58.395, 57.12, 57.375]"


@exports
def test_detector(folder, capsys):
    """Whole, normalising within, and compared with the host on photographs."""
    import onnxruntime

    photographs = make_photographs(folder.parent / "photographs")
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = randomized(MODELS.build(Config.fromfile("whole.py").model))
    out = folder / "a.onnx"
    export("whole.py", "weights.pth", out, "--preprocess", "--check", photographs)
    said = capsys.readouterr().out
    assert "2 images, 200 detections: largest differences" in said
    assert "image (1, 3, H, W), BGR, uint8, to boxes, scores, labels" in said
    session = onnxruntime.InferenceSession(out)
    assert [one.shape for one in session.get_inputs()] == [[1, 3, "height", "width"]]
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["task"] == "detection"
    assert facts["classes"] == '["circle", "square", "triangle"]'
    form, loaded = form_of(model), torch.randint(0, 256, (1, 3, 47, 90), dtype=torch.uint8)
    found = [torch.from_numpy(x) for x in session.run(None, {"image": loaded.numpy()})]
    wanted = form.module(Preprocessed(torch.nn.Identity(), dict(facts, channels="RGB"))(loaded))
    assert_close(found, wanted)


def make_photographs(folder: Path) -> Path:
    """Make a folder with two images."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(2):
        cv2.imwrite(f"{folder}/{i}.png", random.integers(0, 256, (70, 100, 3), np.uint8))
    return folder


def assert_close(found, wanted) -> None:
    """Compare boxes, scores, labels, and masks where there are, in whatever order ties have."""
    assert [x.shape for x in found] == [x.shape for x in wanted]
    near = (found[0][:, None] - wanted[0]).abs().amax(2) < 1e-2
    near &= (found[1][:, None] - wanted[1]).abs() < 1e-5
    near &= found[2][:, None] == wanted[2]
    assert near.any(0).all()
    assert near.any(1).all()


@exports
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("retinanet", ".onnx"),
        ("rtmdet", ".pt2"),
        ("mask_rcnn", ".pt2"),
        ("cascade_mask_rcnn", ".onnx"),
    ],
)
def test_detectors(name, suffix, tmp_path):
    """On images of other sizes than the check's, on one of which there is nothing to find."""
    is_one_stage = name in forms_tests.ONE_STAGE
    cfg = forms_tests.one_stage(name) if is_one_stage else forms_tests.two_stages(name)
    model = forms_tests.built(cfg)
    images = [4 * torch.randn(1, 3, *size) for size in ((32, 32), (129, 67), (50, 260))]
    images.append(torch.zeros(1, 3, 45, 60))
    limits = model.roi_head.test_cfg if hasattr(model, "roi_head") else model.bbox_head.test_cfg
    limits.score_thr = form_of(model).module(images[-1])[1].max().item() + 1e-3
    pasted = not is_one_stage
    done = deploy.export(model, tmp_path / f"a{suffix}", fused=suffix == ".pt2", pasted=pasted)
    run, form, counts = formats.open_file(done.path), form_of(model, pasted=pasted), []
    for image in images:
        found = run(image)
        assert_close(found, form.module(image))
        counts.append(len(found[0]))
    assert counts[-1] == 0 < min(counts[:-1])


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@exports
@pytest.mark.parametrize("name", ["a.onnx", "a.pt2"])
def test_full_disk(name, folder, monkeypatch, capsys):
    monkeypatch.setattr(formats, "write_onnx", full_disk)
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    status, line = failure(capsys, "detector.py", folder / name, "--backbone")
    assert status == 2
    assert f"{name} cannot be written: OSError: [Errno 28] No space left on device" in line
    assert line.count("\n") == 1
    assert not list(folder.iterdir())


@exports
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["detector.py"], "model (RetinaNet) needs 'neck': set model.neck"),
        (["no_form.py"], "FoveaHead has no export form: _predict_by_feat_single is FoveaHead's"),
        (["no_form.py"], "; --backbone exports its feature maps\n"),
        (["whole.py", "--paste"], "pasted masks: RetinaNet has no masks"),
        (["upernet.py", "--paste"], "pasted masks are for detectors; this is a segmentation model"),
        (["whole.py", "--check", "nowhere"], "folder nowhere not found; name one with photographs"),
        (["whole.py", "--check", "out"], "out: no photographs in it; expected a folder with"),
        (["upernet.py", "--check", "out"], "photographs are to check detectors with; what is expo"),
        (["detector.py", "--backbone", "--preprocess"], "preprocessing in the graph is for whole"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_said_before_it_is_traced(
    arguments, line, folder, monkeypatch, capsys
):
    monkeypatch.setattr(tracing, "trace", None)
    Path("no_form.py").write_text(NO_FORM)
    name, *options = arguments
    status, said = failure(capsys, name, folder / "a.onnx", *options)
    assert status == 2
    assert said.startswith("hire-mlp export: error: ")
    assert line in said
    assert said.count("\n") == 1
    assert not list(folder.iterdir())


@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_windows_that_the_file_does_not_have_are_said(mode, folder, monkeypatch):
    cfg = Config.fromfile("upernet.py")
    cfg.model.test_cfg = dict(mode=mode, crop_size=(64, 64), stride=(32, 32))
    said = []
    monkeypatch.setattr(exporting, "write", full_disk)
    with pytest.raises(OSError, match="No space left"):
        deploy.export(cfg, folder / "a.pt2", say=said.append)
    assert any("test_cfg.mode is slide" in line for line in said) == (mode == "slide")


@exports
@pytest.mark.parametrize("fault", ["shift", "size"])
def test_what_fails_the_check_does_not_stay(fault, folder, monkeypatch, capsys):
    """A difference, a shift left out or a size that the file does not take: status 1, no file."""
    if fault == "shift":
        trace = tracing.trace

        def trace_without_shift(model, *arguments):
            model = copy.deepcopy(model)
            model.stages[0].blocks[1].token_mixer.height.shift = 0
            return trace(model, *arguments)

        monkeypatch.setattr(tracing, "trace", trace_without_shift)
    else:
        monkeypatch.setattr(formats, "CHECKED", [(1, 3, tracing.LEAST - 1, 64)])
    status, line = failure(capsys, "detector.py", folder / "backbone.pt2", "--backbone")
    assert status == 1
    assert "backbone.pt2 not written: " in line
    assert ("fails on images" if fault == "size" else "differs from PyTorch's by ") in line
    assert line.count("\n") == 1
    assert not list(folder.iterdir())


@exports
@pytest.mark.parametrize("fused", [False, True])
def test_a_model_in_hand(fused, folder):
    """From Python, of a model that trains; it is left alone."""
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = randomized(MODELS.build(Config.fromfile("upernet.py").model)).train()
    done = deploy.export(model, folder / "a.pt2", fused=fused)
    assert model.training
    assert done.names == ["logits"]
    assert done.difference < 1e-4
    model.eval()
    assert_equal(
        done.path, lambda image: model.encode_decode(image, [dict(img_shape=image.shape[2:])])
    )  # fmt: skip


def test_a_number_that_is_none_is_a_difference():
    def nan_last(image):
        return [image, image * torch.nan]

    with pytest.raises(formats.CheckError, match="last differs from PyTorch's by inf"):
        formats.compare(nan_last, lambda image: [image, image], ["first", "last"], 1.0, print)


@exports
def test_a_model_in_hand_has_its_config(folder, monkeypatch):
    model = get_model(forms_tests.classifier(), pretrained=False)
    monkeypatch.setattr(exporting, "write", full_disk)
    with pytest.raises(OSError, match="No space left"):  # so far it comes with a config alone
        deploy.export(model, folder / "a.pt2", preprocess=True)


@exports
def test_a_model_in_hand_has_its_weights(folder):
    with pytest.raises(UserError, match=r"checkpoint mine\.pth: the model given has its weights"):
        deploy.export(torch.nn.Linear(1, 1), folder / "a.pt2", "mine.pth")


@exports
def test_a_folder_that_is_not_ours(folder, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    status, said = failure(capsys, "detector.py", folder / "a.onnx")
    assert status == 2
    assert f"folder {folder} cannot be written to" in said


@exports
def test_a_model_without_hire_mlp(folder):
    with pytest.raises(UserError, match="Linear has no HireMLP"):
        deploy.export(torch.nn.Linear(1, 1), folder / "a.pt2")


@exports
def test_random_weights_are_said(folder, capsys):
    export("upernet.py", folder / "backbone.pt2", "--backbone")
    assert "warning: no checkpoint given: the weights are random" in capsys.readouterr().out
    assert len(formats.open_file(folder / "backbone.pt2")(torch.randn(1, 3, 40, 40))) == 2


@exports
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nothing.py", "out/a.onnx"], "config nothing.py not found"),
        (["detector.py", "out/a.onxx"], "out/a.onxx: expected a name that ends in .onnx or .pt2"),
        (["detector.py", "upernet.py"], "upernet.py: expected a name that ends in .onnx or .pt2"),
        (["detector.py", "a.pth"], "a.pth is a checkpoint; name the file to write after it"),
        (["detector.py", "out/b/a.onnx"], "folder out/b not found; make it first"),
        (["detector.py", "no.pth", "out/a.onnx"], "checkpoint no.pth not found"),
        (["upernet.py", "detector.py", "out/a.onnx"], "detector.py cannot be read: it is text"),
        (["other.py", "out/a.onnx"], "model.backbone of other.py is ResNet; expected HireMLP"),
        (["detector.py", "out/a.onnx", "--size", "16x64"], "--size 16x64: expected height x width"),
    ],
)
def test_errors_are_one_line(arguments, line, folder, capsys):
    other = "default_scope = 'mmseg'\nmodel = dict(backbone=dict(type='ResNet'))"
    Path("other.py").write_text(other)
    status, said = failure(capsys, *arguments)
    assert status == 2
    assert said.startswith(f"hire-mlp export: error: {line}")
    assert said.count("\n") == 1
    assert not list(folder.iterdir())


class Weighted(torch.nn.Module):
    """As the integral of GFL's head: a buffer in the type that it has."""

    def __init__(self):
        super().__init__()
        self.register_buffer("project", torch.tensor([0.5, 2.0, 4.0]))

    def forward(self, x):
        return x * self.project.type_as(x).view(-1, 1, 1)


class Pooled(torch.nn.Module):
    """An operator that ONNX has none for."""

    def forward(self, x):
        return F.adaptive_max_pool2d(x, 5)


def write(module, path):
    form = SimpleNamespace(task="segmentation", names=["out"])
    exporting.write(module, form, {}, path, torch.float32, print)


@exports
def test_a_weight_under_a_second_name_is_exported(tmp_path):
    write(Weighted(), tmp_path / "a.onnx")
    x = torch.rand(2, 3, 40, 50)
    (found,) = formats.open_file(tmp_path / "a.onnx")(x)
    torch.testing.assert_close(found, Weighted()(x))


@exports
def test_an_operator_that_onnx_lacks_is_named(tmp_path):
    with pytest.raises(UserError, match="No ONNX function found") as stop:
        write(Pooled(), tmp_path / "a.onnx")
    assert "adaptive_max_pool2d" in str(stop.value)
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_an_export_and_its_temporary_files(number, code, folder, monkeypatch, capsys):
    """Torch makes a fault of the model of an exception within its exporter."""

    def interrupted(*args, **options):
        try:
            signal.raise_signal(number)
        except BaseException:
            raise TypeError("unsupported operand type(s) for +") from None

    monkeypatch.setattr(tracing, "trace", interrupted)
    before = signal.getsignal(number)
    status, said = failure(capsys, "detector.py", folder / "a.onnx", "--backbone")
    assert status == code
    assert "unsupported" not in said
    assert not list(folder.iterdir())
    assert signal.getsignal(number) == before


@exports
def test_says_what_to_install(folder, monkeypatch, capsys):
    monkeypatch.setattr(formats, "NEEDED", ("onnx", "no_such_runtime"))
    status, said = failure(capsys, "detector.py", folder / "a.onnx")
    assert status == 2
    assert "error: no_such_runtime not found: pip install onnx no_such_runtime\n" in said


@pytest.mark.skipif(CAN_EXPORT, reason="this torch can export")
def test_an_old_torch_is_an_error(folder, capsys):
    status, said = failure(capsys, "detector.py", folder / "a.onnx")
    assert status == 2
    assert f"torch {torch.__version__} cannot export" in said


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7, 13, 64])
@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_average_pool(size, bins):
    x = torch.randn(2, 3, size, 11)
    expected = F.adaptive_avg_pool2d(x, bins)
    assert torch.allclose(tracing.average_pool(x, bins), expected, atol=1e-6)


@exports
def test_a_file_that_is_there_stays(folder, capsys):
    (folder / "a.onnx").write_text("precious")
    status, said = failure(capsys, "detector.py", folder / "a.onnx")
    assert status == 2
    assert "a.onnx exists already; name a new file" in said
    assert (folder / "a.onnx").read_text() == "precious"
