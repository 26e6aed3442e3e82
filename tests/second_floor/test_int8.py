"""Does an int8 file say nearly what the float32 file says, and does a wrong one not stay?"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hire_mlp_mm.deploy import int8
from hire_mlp_mm.deploy.formats import CheckError
from hire_mlp_mm.deploy.runtime import Runtime
from hire_mlp_mm.errors import UserError
from tests.second_floor.test_export import export, failure, folder  # noqa: F401
from tests.second_floor.test_runtime import BOXES, PLAIN, write_file

WITH_PIPELINE = """
_base_ = "./semantic_fpn.py"
pipeline = [dict(type="LoadImageFromFile"), dict(type="Resize", scale=(96, 64), keep_ratio=True)]
test_dataloader = dict(dataset=dict(pipeline=pipeline))
"""
HEADS = dict(segmentation="decode_head.conv_seg", classification="head.fc")


def network(path: Path, task: str, factor: float = 1.0) -> Path:
    """Two convolutions, a product of batches, and the last layer of a head, weights multiplied."""
    random, node = np.random.default_rng(0), helper.make_node
    head = HEADS[task] + ".weight"
    shapes = {"stem.weight": (8, 3, 3, 3), "mlp.weight": (8, 8, 1, 1), head: (4, 8, 1, 1)}
    shapes["batches.weight"] = (1, 8, 8)
    arrays = {name: random.normal(0, 0.5, shape) for name, shape in shapes.items()}
    arrays[head] *= factor
    nodes = [
        node("Conv", ["image", "stem.weight"], ["a"], "stem", pads=[1] * 4),
        node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "mlp.weight"], ["c"], "mlp"),
        node("Transpose", ["c"], ["tokens"], perm=[0, 2, 3, 1]),
        node("MatMul", ["tokens", "batches.weight"], ["mixed"], "batches"),
        node("Transpose", ["mixed"], ["maps"], perm=[0, 3, 1, 2]),
        node("Conv", ["maps", head], ["d"], "head"),
    ]
    output, rank = ("logits", 4) if task == "segmentation" else ("scores", 2)
    pool = [node("GlobalAveragePool", ["d"], ["e"]), node("Flatten", ["e"], [output])]
    nodes += [node("Identity", ["d"], [output])] if rank == 4 else pool
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [None, 3, None, None])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(np.float32(x), name) for name, x in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, PLAIN | dict(task=task))
    onnx.save(model, path)
    return path


@pytest.fixture
def photos(tmp_path) -> Path:
    """Photographs of odd sizes, one in a folder of its own, and a text beside them."""
    random = np.random.default_rng(1)
    (tmp_path / "photos/more").mkdir(parents=True)
    for name, (h, w) in {"a.png": (33, 47), "b.jpg": (64, 40), "more/c.png": (51, 70)}.items():
        coarse = random.integers(0, 256, (h // 8, w // 8, 3), np.uint8)
        cv2.imwrite(str(tmp_path / "photos" / name), cv2.resize(coarse, (w, h)))
    (tmp_path / "photos/notes.txt").write_text("none")
    return tmp_path / "photos"


@pytest.mark.parametrize("task", HEADS)
def test_int8_says_nearly_the_same(task, photos, tmp_path):
    lines: list[str] = []
    path = network(tmp_path / "exact.onnx", task)
    images = int8.photographs_for(path, photos)
    rough, agreement = int8.make_int8(path, images, lines.append)
    assert agreement >= 0.9
    assert "3 photographs" in lines[0]
    assert lines[-1].startswith(f"int8 agrees with float32 on {agreement:.2%} of ")
    facts = Runtime(path).facts
    assert facts.items() < rough.facts.items()
    how = json.loads(rough.facts["int8"])
    assert (how["photographs"], how["layers"]) == (3, 2)
    assert how["float_layers"] == [HEADS[task]]
    kinds = {x.name: x.data_type for x in onnx.load(rough.path).graph.initializer}
    assert kinds["stem.weight_quantized"] == TensorProto.INT8
    assert kinds[HEADS[task] + ".weight"] == kinds["batches.weight"] == TensorProto.FLOAT


@pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="OpenVINO is not installed")
def test_openvino_reads_int8(photos, tmp_path):
    path = network(tmp_path / "exact.onnx", "segmentation")
    images = int8.photographs_for(path, photos)
    rough, _ = int8.make_int8(path, images, print)
    other = Runtime(rough.path, "openvino", threads=1)
    same = [(rough.predict(x)["labels"] == other.predict(x)["labels"]).mean() for x in images]
    assert min(same) > 0.98


@pytest.mark.parametrize(
    ("factor", "line"),
    [(np.nan, "the logits of int8 are not finite"), (-1, r"agrees with float32 on \d+% of pixels")],
)
def test_a_wrong_file_is_refused(factor, line, photos, tmp_path):
    exact, wrong = (
        network(tmp_path / f"{x}.onnx", "segmentation", x) for x in (1.0, float(factor))
    )
    images = int8.photographs_for(exact, photos)
    with pytest.raises(CheckError, match=line):
        int8.compare(Runtime(exact), Runtime(wrong), images, print)


def test_boxes_agree_where_label_and_place_do(photos, tmp_path, monkeypatch):
    exact = Runtime(write_file(tmp_path / "exact.onnx", "detection"))
    images = int8.photographs_for(Path(exact.path), photos)
    monkeypatch.setitem(BOXES, "boxes", BOXES["boxes"] + np.float32([[1], [900], [0]]))
    near = Runtime(write_file(tmp_path / "near.onnx", "detection"))
    # The second box has a score that does not count.
    assert int8.compare(exact, near, images, print) == 1.0
    monkeypatch.setitem(BOXES, "labels", np.int64([1, 1, 1]))
    other = Runtime(write_file(tmp_path / "other.onnx", "detection"))
    with pytest.raises(CheckError, match="agrees with float32 on 0% of boxes; expected 50%"):
        int8.compare(exact, other, images, print)


@pytest.mark.parametrize(
    ("out", "place", "line"),
    [
        ("a.pt2", "photos", r"a\.pt2: int8 is for ONNX; expected a name that ends in \.onnx"),
        ("a.onnx", "gone", "folder gone not found; name one with photographs"),
        ("a.onnx", "photos/a.png", "folder photos/a.png not found"),
        ("a.onnx", "empty", "no images or videos in empty"),
        ("a.onnx", "videos", "videos: no photographs in it"),
        ("a.onnx", "damaged", r"bad\.png: the image cannot be decoded"),
    ],
)
def test_photographs_that_cannot_be(out, place, line, photos, monkeypatch):
    monkeypatch.chdir(photos.parent)
    for name, file in dict(empty="a.txt", videos="a.mp4", damaged="bad.png").items():
        Path(name).mkdir()
        Path(name, file).write_bytes(b"none")
    with pytest.raises(UserError, match=line):
        int8.photographs_for(Path(out), place)


def test_of_many_photographs_some_are_taken(photos, monkeypatch):
    monkeypatch.setattr(int8, "IMAGES", 2)
    assert len(int8.photographs_for(Path("a.onnx"), photos)) == 2


def test_the_command_refuses_before_it_begins(folder, photos, capsys):  # noqa: F811
    status, said = failure(capsys, "semantic_fpn.py", folder / "a.onnx", "--int8", "gone")
    assert (status, "folder gone not found" in said) == (2, True)
    words = ("upernet.py", folder / "a.onnx", "--backbone", "--int8", photos)
    status, said = failure(capsys, *words)
    assert (status, "cannot be prepared here (a backbone alone" in said) == (2, True)
    assert not list(folder.iterdir())


@pytest.mark.slow
def test_the_command(folder, photos, capsys):  # noqa: F811
    Path("whole.py").write_text(WITH_PIPELINE)
    export("whole.py", folder / "a.onnx", "--preprocess", "--int8", photos)
    lines = capsys.readouterr().out
    assert "int8 agrees with float32 on " in lines
    assert [path.name for path in folder.iterdir()] == ["a.onnx"]
    found = Runtime(folder / "a.onnx")
    assert json.loads(found.facts["int8"])["float_layers"] == ["decode_head.conv_seg"]
    assert found.predict(cv2.imread(str(photos / "a.png")))["labels"].shape == (33, 47)
