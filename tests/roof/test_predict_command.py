"""Does `hire-mlp predict` tell its words apart, and say in a few lines what came of it?"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from hire_mlp_mm import cli
from tests.second_floor.test_predict import CLASSES, files_of, save, work_dirs  # noqa: F401
from tests.second_floor.test_runtime import write_file


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with two images, one of them broken, to work in."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "in/a.png")
    (tmp_path / "in/b.png").write_bytes(b"none")
    return tmp_path


def outcome(capsys, *words: object) -> tuple[object, list[str], str]:
    """Exit code, lines and errors of the command."""
    code: object = 0
    try:
        cli.main(["predict", *map(str, words)])
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err


def test_a_folder(work_dirs, here, capsys):  # noqa: F811
    code, lines, error = outcome(capsys, work_dirs["detection"], "in", "--out", "out")
    assert code == 1
    assert error == "hire-mlp predict: error: 1 of 2 images; 1 failed (named above)\n"
    assert len(lines) == 4
    assert lines[0].endswith(f"{work_dirs['detection']}/detection.py, on cpu")
    assert lines[1].startswith(f"{here}/in/b.png: the image cannot be decoded")
    assert lines[2].startswith("1 image in ")
    assert " images/s: out/" in lines[2]
    assert lines[3].startswith("boxes: ")
    assert files_of(here / "out") == ["images.json", "pictures/a.png", "predictions.json"]


def test_boxes_are_counted(work_dirs, here, capsys):  # noqa: F811
    """A detector says how many it has found; a segmentor has none to count."""
    words = [work_dirs["detection"], "in/a.png", "--out"]
    _, lines, _ = outcome(capsys, *words, "all", "--score-thr", "0.001")
    labels = [one["category_id"] for one in json.loads((here / "all/predictions.json").read_text())]
    counts = Counter(CLASSES[label - 1] for label in labels)
    assert counts
    said = [f"{number} {name}" for name, number in counts.items()]
    assert sorted(lines[-1].removeprefix("boxes: ").split(", ")) == sorted(said)
    code, lines, _ = outcome(capsys, *words, "sure", "--score-thr", "1")
    assert code == 0
    assert lines[-1].startswith("boxes: none; a lower --score-thr")
    _, lines, _ = outcome(capsys, work_dirs["segmentation"], *words[1:], "masks")
    assert not any("boxes" in line for line in lines)


def test_options(work_dirs, here, capsys):  # noqa: F811
    words = ["in/a.png", "--out", "out", "--classes", "square, big triangle", "--no-pictures"]
    words += ["--batch-size", "2", "--fuse", "--amp", "--device", "cpu"]
    code, _, error = outcome(capsys, work_dirs["segmentation"], *words)
    assert (code, error) == (0, "")
    assert files_of(here / "out") == ["classes.csv", "masks/a.png"]
    assert 0 not in Image.open(here / "out/masks/a.png").tobytes()


@pytest.mark.parametrize("config", ["mine.py", "mmseg::nobody.py", "upernet_hire_t_ade20k"])
def test_the_word_after_the_checkpoint_may_be_a_config(config, work_dirs, here, capsys):  # noqa: F811
    checkpoint = work_dirs["segmentation"] / "iter_9.pth"
    code, _, error = outcome(capsys, checkpoint, config, "in", "--out", "out")
    assert code == 2
    expected = {
        "mine.py": "config mine.py not found",
        "mmseg::nobody.py": "config mmseg::nobody.py not found in mmseg",
    }.get(config, "is a network with depths")
    assert expected in error
    assert error.count("\n") == 1


def test_a_folder_of_a_recipes_name_is_an_input(work_dirs, here, capsys):  # noqa: F811
    save(here / "upernet_hire_t_ade20k/a.png")
    words = [work_dirs["segmentation"], "upernet_hire_t_ade20k", "--out", "out"]
    assert outcome(capsys, *words)[0] == 0


def test_a_config_and_no_images(work_dirs, here, capsys):  # noqa: F811
    words = [work_dirs["segmentation"], "upernet_hire_t_ade20k", "--out", "out"]
    code, _, error = outcome(capsys, *words)
    assert code == 2
    assert "no images after the config upernet_hire_t_ade20k" in error


@pytest.mark.parametrize("words", [[], ["--score-thr", "0.3", "--device", "cpu"]])
def test_an_exported_file(words, here, capsys):
    write_file(here / "x.onnx", "detection")
    code, lines, _ = outcome(capsys, "x.onnx", "in", "--out", "out", "--no-pictures", *words)
    assert code == 1
    assert lines[0] == "x.onnx, on cpu, by onnxruntime"
    assert files_of(here / "out") == ["images.json", "predictions.json"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["mine.py", "in"], "leave out the config mine.py, or name the checkpoint"),
        (["mmdet::a.py", "in"], "leave out the config mmdet::a.py"),
        (["in", "--fuse"], "leave out --fuse"),
        (["in", "--amp"], "onnxruntime in bfloat16: expected float32; openvino"),
        (["in", "--amp-dtype", "bfloat16"], "--amp-dtype bfloat16: expected --amp, too"),
        (["in", "--device", "cuda:0"], "leave out --device cuda:0"),
        (["in", "--cfg-options", "a=1"], "leave out --cfg-options"),
        (["in", "--batch-size", "2"], "batch size 2: expected 1"),
        (["retinanet_hire_t_1x_coco"], "not found: retinanet_hire_t_1x_coco"),
    ],
)
def test_what_an_exported_file_does_not_take(words, line, here, capsys):
    write_file(here / "x.onnx", "detection")
    code, lines, error = outcome(capsys, "x.onnx", *words, "--out", "out")
    assert (code, lines) == (2, [])
    assert line in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["gone.onnx", "in", "--out", "out"], "exported file gone.onnx not found"),
        (["a.pt2", "in", "--out", "out"], "a.pt2 is of torch.export, which predict does not run"),
        (["gone", "in", "--out", "out"], "checkpoint or work dir gone not found"),
        (["in/b.png", "in", "--out", "in"], "in is not empty; name a new folder"),
        (["in/b.png", "in"], "the following arguments are required: --out"),
        (["in/b.png", "--out", "out"], "the following arguments are required"),
        (["in/b.png", "in", "--out", "out"], "no config is beside in/b.png"),
    ],
)
def test_mistakes_are_one_line(words, line, here, capsys):
    code, lines, error = outcome(capsys, *words)
    assert (code, lines) == (2, [])
    assert line in error
    assert error.count("\n") == 1
