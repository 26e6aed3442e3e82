"""Does an exported file give, without torch, what its checkpoint gives?"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import Config, ConfigDict
from mmengine.registry import TRANSFORMS, DefaultScope
from mmengine.structures import InstanceData
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from hire_mlp_mm import Predictor
from hire_mlp_mm.deploy import export, runtime
from hire_mlp_mm.deploy.facts import facts_of
from hire_mlp_mm.deploy.forms import form_of
from hire_mlp_mm.deploy.runtime import Opened, Runtime
from hire_mlp_mm.engine import load_config
from hire_mlp_mm.errors import UserError
from hire_mlp_mm.prediction import ExportedPredictor
from tests.conftest import ROOT, needs_compiler
from tests.ground_floor.test_torch_alone import BLOCK, OTHERS
from tests.second_floor.test_predict import (  # noqa: F401
    CLASSES,
    MODELS_OF,
    ODD,
    clip,
    files_of,
    photographs,
    read_json,
    same,
    save,
    scene,
    work_dirs,
)

PLAIN = dict(
    preprocess="outside", channels="RGB", mean="[0, 0, 0]", std="[255, 255, 255]", resize="[]",
    classes=json.dumps(CLASSES),
)  # fmt: skip
BOXES = dict(
    boxes=np.float32([[4, 6, 40, 30], [1, 2, 90, 60], [10, 10, 20, 20]]),
    scores=np.float32([0.9, 0.2, 0.6]),
    labels=np.int64([0, 1, 2]),
    masks=np.random.default_rng(0).random((3, 28, 28), np.float32),
)


def write_file(path: Path, model: str, **facts: str) -> Path:
    """A file whose model is of a few operations: the colours are the classes, the boxes fixed."""
    node, array = helper.make_node, numpy_helper.from_array
    nodes, ranks = [node("Identity", ["image"], ["logits"])], dict(logits=4)
    if model == "detection":
        nodes = [node("Constant", [], [name], value=array(BOXES[name])) for name in BOXES]
        ranks = {name: value.ndim for name, value in BOXES.items()}
    elif model == "classification":
        nodes = [node("GlobalAveragePool", ["image"], ["x"]), node("Flatten", ["x"], ["scores"])]
        ranks = dict(scores=2)
    types = dict.fromkeys(ranks, TensorProto.FLOAT) | dict(labels=TensorProto.INT64)
    outputs = [
        helper.make_tensor_value_info(name, types[name], [None] * rank)
        for name, rank in ranks.items()
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [None, 3, None, None])
    graph = helper.make_graph(nodes, "model", [image], outputs)
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    facts = PLAIN | dict(task=model) | facts
    helper.set_model_props(whole, {name: text for name, text in facts.items() if text})
    onnx.save(whole, path)
    return path


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    return {task: write_file(tmp_path / f"{task}.onnx", task) for task in MODELS_OF}


# Without torch ----------------------------------------------------------------------------------


PREDICT = """
from hire_mlp_mm.cli import main
main(sys.argv[2:])
assert not set(sys.argv[1].split(",")) & set(sys.modules)
"""


def without_torch(*words: object) -> subprocess.CompletedProcess:
    """`hire-mlp` in a process in which neither torch nor OpenMMLab can be imported."""
    command = [sys.executable, "-c", BLOCK + PREDICT, f"torch,{OTHERS}", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("task", MODELS_OF)
def test_the_command_needs_neither_torch_nor_openmmlab(task, files, photographs, clip):  # noqa: F811
    out = photographs.parent / "out"
    done = without_torch("predict", files[task], photographs, clip, "--out", out)
    assert done.returncode == 1  # one of the photographs is broken
    assert done.stderr.endswith("8 of 9 images; 1 failed (named above)\n")
    assert done.stdout.splitlines()[1] == f"{files[task]}, on cpu, by onnxruntime"
    names = files_of(out)
    assert "pictures/my photographs/été 1/a.png" in names
    assert "pictures/clip.avi" in names
    if task == "detection":
        results = read_json(out / "predictions.json")
        assert len(results) == 8 * 2  # of three boxes, one is too uncertain
        assert [one["category_name"] for one in results[:2]] == [CLASSES[0], CLASSES[2]]
        assert {"segmentation", "bbox", "score", "image_id"} <= results[0].keys()
    elif task == "segmentation":
        assert "masks/my photographs/a.png" in names
        assert "classes.csv" in names
    else:
        assert len((out / "predictions.csv").read_text().splitlines()) == 1 + 8 * 3


def test_a_checkpoint_needs_them_and_the_line_says_so(work_dirs, photographs):  # noqa: F811
    words = [work_dirs["detection"], photographs, "--out", photographs.parent / "out"]
    done = without_torch("predict", *words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "is not installed" in done.stderr


def test_from_python(files, photographs):  # noqa: F811
    code = BLOCK + (
        "import cv2, hire_mlp_mm\n"
        "from hire_mlp_mm.deploy.runtime import Runtime\n"
        "model = Runtime(sys.argv[2])\n"
        "found = model.predict(cv2.imread(sys.argv[3]))\n"
        "print([model.classes[label] for label in found['labels']], found['masks'].shape)\n"
        "print(hire_mlp_mm.predict(sys.argv[2], sys.argv[3], sys.argv[4]).images)\n"
    )
    words = [f"torch,{OTHERS}", files["detection"], photographs / "a.png", photographs.parent / "o"]
    command = [sys.executable, "-c", code, *map(str, words)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said == f"{list(CLASSES)} (3, 64, 96)\n1\n"


# The checkpoint's results -----------------------------------------------------------------------


def as_exported(checkpoint: Predictor, in_graph: bool) -> Opened:
    """What opening a file gives whose graph computes as PyTorch does, to the last bit."""
    form = form_of(checkpoint.model)
    meta = dict(classes=checkpoint.classes, palette=checkpoint.palette)
    facts = facts_of(checkpoint.cfg, form.model, task=checkpoint.task, in_graph=in_graph, meta=meta)
    preprocessor = checkpoint.model.data_preprocessor

    @torch.no_grad()
    def run(images: np.ndarray) -> list[np.ndarray]:
        x = torch.from_numpy(images)
        if in_graph:  # RGB out of BGR
            x = (x.flip(1).float() - preprocessor.mean) / preprocessor.std
        outputs = form.module(x)
        outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
        return [output.numpy() for output in outputs]

    return Opened(form.names, np.dtype(np.uint8 if in_graph else np.float32), facts, run)


@pytest.fixture
def pair(work_dirs, monkeypatch, tmp_path):  # noqa: F811
    """Make a predictor of a checkpoint and one of a file, with options of both."""

    def make(task: str, in_graph: bool = False, **options):
        ours = Predictor(work_dirs[task], **options)
        opened = as_exported(ours, in_graph)
        monkeypatch.setitem(
            runtime.ENGINES, "onnxruntime", (lambda *arguments: opened, ("float32",))
        )
        (tmp_path / "x.onnx").write_bytes(b"")
        return ours, ExportedPredictor(tmp_path / "x.onnx", **options)

    return make


def compare(checkpoint: Predictor, exported: ExportedPredictor, images: Path) -> None:
    """Check that two predictors say the same of all images."""
    assert (exported.task, exported.classes) == (checkpoint.task, checkpoint.classes)
    assert exported.palette == checkpoint.palette
    ours, theirs = ([*one(images, report=print)] for one in (exported, checkpoint))
    assert [one.source for one in ours] == [one.source for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        if exported.task == "segmentation":
            assert one.results.dtype == other.results.dtype
            assert (one.results != other.results).mean() < 1e-3
        elif exported.task == "classification":
            assert [r["class"] for r in one.results] == [r["class"] for r in other.results]
            scores = [[r["score"] for r in found.results] for found in (one, other)]
            assert scores[0] == pytest.approx(scores[1], abs=2e-5)
        else:
            same(one.results, other.results, rtol=1e-4, atol=0.02)
            masks = other.sample.pred_instances.masks.numpy()
            assert (one.sample["masks"] != masks).sum() <= masks.size / 1e4


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("task", MODELS_OF)
def test_the_results_are_the_checkpoints(task, in_graph, pair, photographs):  # noqa: F811
    save(photographs / "large.jpg", 5, width=333, height=201)
    save(photographs / "tall.png", 6, width=50, height=340)
    options = dict(score_thr=0.01) if task == "detection" else dict(batch_size=3)
    compare(*pair(task, in_graph, **options), photographs)


@pytest.mark.parametrize("task", MODELS_OF)
def test_chosen_classes(task, pair, photographs):  # noqa: F811
    options: dict = dict(classes=["c", "f"] if task == "classification" else [CLASSES[2]])
    options |= dict(score_thr=0.01) if task == "detection" else {}
    compare(*pair(task, **options), photographs)


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("task", MODELS_OF)
def test_an_exported_file_gives_the_checkpoints_results(
    task, work_dirs, photographs, tmp_path  # noqa: F811
):  # fmt: skip
    cfg = Config.fromfile(work_dirs[task] / f"{task}.py")
    path = tmp_path / f"{task}.onnx"
    export(cfg, path, str(work_dirs[task] / "iter_9.pth"))
    options = dict(score_thr=0.01) if task == "detection" else {}
    compare(Predictor(work_dirs[task], **options), ExportedPredictor(path, **options), photographs)


# Preparing --------------------------------------------------------------------------------------


PIXELS = np.random.default_rng(0).integers(0, 256, (340, 340, 3), dtype=np.uint8)
STEPS = [
    dict(type="Resize", scale=(133, 80), keep_ratio=True),
    dict(type="Resize", scale=(80, 133), keep_ratio=True, interpolation="bicubic"),
    dict(type="Resize", scale=(70, 110)),
    dict(type="Resize", scale=96, backend="pillow", interpolation="lanczos"),
    dict(type="Resize", scale_factor=0.37),
    dict(type="Resize", scale_factor=(1.5, 0.6), keep_ratio=True, interpolation="area"),
    dict(type="ResizeEdge", scale=60, backend="pillow", interpolation="bicubic"),
    dict(type="ResizeEdge", scale=61, edge="long", interpolation="nearest"),
    dict(type="ResizeEdge", scale=62, edge="width"),
    dict(type="ResizeEdge", scale=63, edge="height"),
    dict(type="CenterCrop", crop_size=64),
    dict(type="CenterCrop", crop_size=(31, 90)),
]


def as_written(step: dict) -> dict:
    return json.loads(json.dumps(step))


@pytest.mark.parametrize("step", STEPS, ids=str)
@settings(deadline=None, max_examples=40, database=None)
@given(height=st.integers(20, 340), width=st.integers(20, 340))
def test_images_are_prepared_as_by_mmcv(step, height, width):
    image = np.ascontiguousarray(PIXELS[:height, :width])
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        theirs = TRANSFORMS.build(step)(dict(img=image))["img"]
    found = runtime.STEPS[step["type"]](image, as_written(step))
    np.testing.assert_array_equal(found, theirs)


def test_odd_images_are_loaded_as_by_the_host(pair, tmp_path):
    (tmp_path / "in").mkdir()
    for name, write in ODD.items():
        write(Image.fromarray(scene(1)), tmp_path / "in" / name)
    compare(*pair("classification"), tmp_path / "in")


# Finishing --------------------------------------------------------------------------------------


def pasted_by_mmdet(masks, boxes, size):
    from mmdet.models.roi_heads.mask_heads import FCNMaskHead

    with DefaultScope.overwrite_default_scope("mmdet"):
        head = FCNMaskHead(num_convs=0, in_channels=1, num_classes=1, class_agnostic=True)
    logits = torch.from_numpy(masks).logit()[:, None]
    found = InstanceData(
        bboxes=torch.from_numpy(boxes), labels=torch.zeros(len(boxes), dtype=torch.long)
    )
    meta = dict(scale_factor=(1.0, 1.0), ori_shape=size)
    cfg = ConfigDict(mask_thr_binary=0.5)
    return head.predict_by_feat((logits,), [found], [meta], cfg, rescale=True)[0].masks.numpy()


@settings(deadline=None, max_examples=60, database=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4),
    st.integers(0, 9),
)
def test_masks_are_pasted_as_by_mmdet(height, width, corners, seed):
    (x1, x2), (y1, y2) = sorted(corners[::2]), sorted(corners[1::2])
    box = np.float32([x1 * width, y1 * height, x2 * width, y2 * height])
    mask = np.random.default_rng(seed).uniform(0.05, 0.95, (28, 28)).astype(np.float32)
    theirs = pasted_by_mmdet(mask[None], box[None], (height, width))[0]
    found = runtime.paste(mask, box, (height, width), 0.5)
    assert (found != theirs).sum() <= 1  # where the probability is the threshold


@pytest.mark.parametrize("classes", [1, 2, 7])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("sizes", [((16, 24), (32, 48)), ((50, 31), (17, 90)), ((1, 8), (5, 1))])
def test_labels_are_those_of_mmseg(sizes, align_corners, classes):
    from mmseg.models.utils import resize

    logits = torch.randn(classes, *sizes[0])
    large = resize(logits[None], sizes[1], mode="bilinear", align_corners=align_corners)[0]
    theirs = large.sigmoid() > 0.3 if classes == 1 else large.argmax(0)
    found = runtime.label_map(logits.numpy(), sizes[1], align_corners, 0.3)
    assert (found != theirs.squeeze(0).numpy()).mean() < 5e-3


# Facts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "task", "types"),
    [
        ("mask_rcnn_hire_s_1x_coco", "detection", ["Resize"]),
        ("upernet_hire_s_ade20k", "segmentation", ["Resize"]),
        ("hire_s_imagenet", "classification", ["ResizeEdge", "CenterCrop"]),
    ],
)
def test_what_a_file_says_of_a_recipe(recipe, task, types):
    facts = facts_of(load_config(f"{ROOT}/configs/{recipe}.py"), task=task)
    assert [step["type"] for step in json.loads(facts["resize"])] == types
    assert facts["channels"] == "RGB"
    assert facts["config"] == f"{recipe}.py"
    assert len(json.loads(facts["palette"])) == len(json.loads(facts["classes"])) > 79


@pytest.mark.parametrize("option", ["bgr_to_rgb", "rgb_to_bgr", None])
def test_what_a_file_says_of_colours(option):
    """Of channels that are turned round, by either name."""
    cfg = load_config(f"{ROOT}/configs/upernet_hire_s_ade20k.py")
    cfg.model.data_preprocessor.update(bgr_to_rgb=False)
    cfg.model.data_preprocessor.update({option: True} if option else {})
    assert facts_of(cfg)["channels"] == ("RGB" if option else "BGR")


def without_pipeline(cfg) -> None:
    cfg.test_dataloader = None


def change(step: dict | None = None, index: int = 1, **options):
    def changed(cfg) -> None:
        pipeline = cfg.test_dataloader.dataset.pipeline
        if step:
            pipeline.insert(index, step)
        pipeline[index].update(options)

    return changed


@pytest.mark.parametrize(
    ("recipe", "changed", "step"),
    [
        ("mask_rcnn_hire_s_1x_coco", change(dict(type="Pad", size=(640, 640)), 2), "Pad"),
        ("mask_rcnn_hire_s_1x_coco", change(dict(type="mmcv.CenterCrop", crop_size=9), 2),
         "CenterCrop"),
        ("mask_rcnn_hire_s_1x_coco", change(index=0, to_float32=True),
         "LoadImageFromFile(to_float32=True)"),
        ("hire_s_imagenet", change(index=2, auto_pad=True), "CenterCrop(auto_pad=True)"),
        ("upernet_hire_s_ade20k",
         lambda cfg: cfg.model.data_preprocessor.update(test_cfg=dict(size_divisor=32)),
         "padding by data_preprocessor"),
        ("upernet_hire_s_ade20k", without_pipeline, "no test pipeline"),
    ],
)  # fmt: skip
def test_a_step_that_is_not_known_is_named(recipe, changed, step):
    task = dict(u="segmentation", m="detection", h="classification")[recipe[0]]
    cfg = load_config(f"{ROOT}/configs/{recipe}.py")
    changed(cfg)
    facts = facts_of(cfg, task=task)
    assert facts["unknown_step"] == step
    assert "resize" not in facts


# What is refused --------------------------------------------------------------------------------


def test_a_backbone_and_an_unknown_step_still_run_on_arrays(tmp_path):
    array = np.zeros((2, 3, 8, 9), np.float32)
    path = write_file(tmp_path / "b.onnx", "features")
    assert Runtime(path)(array)["logits"].shape == array.shape
    with pytest.raises(UserError, match=r"b\.onnx is a backbone alone and predicts nothing"):
        ExportedPredictor(path)
    path = write_file(tmp_path / "p.onnx", "segmentation", unknown_step="Pad", resize="")
    assert Runtime(path)(array)["logits"].shape == array.shape
    with pytest.raises(UserError, match=r"cannot be prepared here as for the checkpoint \(Pad\)"):
        Runtime(path).predict(np.zeros((8, 9, 3), np.uint8))


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        (dict(task=""), "does not say its task; expected a file that hire-mlp export wrote"),
        (dict(classes="[1,"), "its classes cannot be read"),
    ],
)
def test_odd_facts(facts, line, tmp_path):
    path = write_file(tmp_path / "x.onnx", "segmentation", **facts)
    with pytest.raises(UserError, match=line):
        ExportedPredictor(path)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (dict(batch_size=2), "batch size 2: expected 1, for a detector's file"),
        (dict(batch_size=0), "batch size 0: expected 1 or more"),
        (dict(score_thr=2), "score threshold 2: expected 0 to 1"),
        (dict(classes=["circel"]), "no class 'circel'; near it: circle"),
    ],
)
def test_options_that_cannot_be(options, line, files):
    with pytest.raises(UserError, match=line):
        ExportedPredictor(files["detection"], **options)


@pytest.mark.parametrize(
    ("image", "line"),
    [
        (np.zeros((8, 8), np.uint8), r"expected an image \(H, W, 3\) of uint8"),
        (np.zeros((8, 8, 3)), r"found \(8, 8, 3\) of float64"),
        (np.zeros((8, 8, 4), np.uint8), r"found \(8, 8, 4\) of uint8"),
        (cv2.imread("gone.png"), "found None, which cv2.imread gives where it cannot read a file"),
        ("image.png", "found str"),
    ],
)
def test_what_is_no_image(image, line, files):
    with pytest.raises(UserError, match=line):
        Runtime(files["segmentation"]).predict(image)
    with pytest.raises(UserError, match=r"expected images \(N, 3, H, W\) of float32"):
        Runtime(files["segmentation"])(image)


def test_files_and_engines(files, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"exported file gone\.onnx not found"):
        Runtime("gone.onnx")
    with pytest.raises(UserError, match="engine tensorrt: expected one of onnxruntime, openvino"):
        Runtime(files["detection"], engine="tensorrt")
    (tmp_path / "bad.onnx").write_bytes(b"none")
    with pytest.raises(UserError, match=r"bad\.onnx cannot be opened by onnxruntime: ") as error:
        Runtime(tmp_path / "bad.onnx")
    assert "\n" not in str(error.value)
    for engine in runtime.ENGINES:
        monkeypatch.setitem(sys.modules, engine, None)
        with pytest.raises(UserError, match=f"needs {engine} to run .*: pip install {engine}"):
            Runtime(files["detection"], engine=engine)


@pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="OpenVINO is not installed")
@pytest.mark.parametrize("task", MODELS_OF)
def test_openvino_says_the_same(task, files):
    image = cv2.cvtColor(scene(1), cv2.COLOR_RGB2BGR)
    one, other = (Runtime(files[task], engine, threads=1) for engine in runtime.ENGINES)
    assert (one.facts, one.names, one.dtype) == (other.facts, other.names, other.dtype)
    ours, theirs = one.predict(image), other.predict(image)
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name], value, rtol=1e-5)
