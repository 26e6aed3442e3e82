"""Does `hire-mlp explain` write pictures, and refuse in a line what it cannot do?"""

from __future__ import annotations

import pytest

from hire_mlp_mm import cli
from tests.second_floor.test_predict import files_of, save, work_dirs  # noqa: F401


def outcome(capsys, *words: object) -> tuple[object, list[str], str]:
    """Exit code, lines and errors of the command."""
    code: object = 0
    try:
        cli.main(["explain", *map(str, words)])
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err


def test_heat_maps(work_dirs, tmp_path, capsys):  # noqa: F811
    pytest.importorskip("torchcam")
    save(tmp_path / "in/a.png")
    words = ["--classes", "square", "--score-thr", "0.001", "--device", "cpu"]
    code, lines, error = outcome(
        capsys, work_dirs["detection"], tmp_path / "in", "--out", tmp_path / "out", *words
    )
    assert (code, error) == (0, "")
    assert lines[0].endswith(", on cpu")
    assert lines[1].startswith("1 image in ")
    assert files_of(tmp_path / "out") == ["pictures/a.png"]


def test_fields(work_dirs, tmp_path, capsys):  # noqa: F811
    image = save(tmp_path / "a.png")
    words = [work_dirs["segmentation"], image, "--fields", "--out", tmp_path / "out"]
    code, lines, error = outcome(capsys, *words)
    assert (code, error) == (0, "")
    assert len(lines) == 5
    assert lines[-1].startswith("1 image in ")
    assert lines[-1].endswith("out/fields.png")


def test_fields_of_photographs_that_are_not_all_whole(work_dirs, tmp_path, capsys):  # noqa: F811
    save(tmp_path / "in/a.png")
    (tmp_path / "in/b.png").write_bytes(b"none")
    words = [work_dirs["segmentation"], tmp_path / "in", "--fields", "--out", tmp_path / "out"]
    code, lines, error = outcome(capsys, *words)
    assert code == 1
    assert error == "hire-mlp explain: error: 1 of 2 images; 1 failed (named above)\n"
    assert lines[0].startswith(f"{tmp_path}/in/b.png: the image cannot be decoded")
    assert files_of(tmp_path / "out") == ["fields.csv", "fields.png"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["{}", "a.png", "--against", "swin-t"], "--against swin-t: expected --fields, too"),
        (["{}", "a.png", "--fields", "--classes", "a"], "--classes is for heat maps; leave it out"),
        (["{}", "a.png", "--fields", "--score-thr", "0"], "--score-thr is for heat maps"),
        (["{}", "gone.png"], "not found: gone.png"),
        (["mine.py", "a.png"], "mine.py is a config; expected the checkpoint"),
        (["{}", "mine.py"], "no images after the config mine.py; name files or folders"),
        (["gone", "a.png"], "checkpoint or work dir gone not found"),
        (["a.onnx", "a.png"], "a.onnx is exported and has no gradients"),
    ],
)
def test_mistakes_are_one_line(words, line, work_dirs, tmp_path, monkeypatch, capsys):  # noqa: F811
    pytest.importorskip("torchcam")
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.png")
    words = [word.format(work_dirs["detection"]) for word in words]
    code, lines, error = outcome(capsys, *words, "--out", "out")
    assert (code, lines) == (2, [])
    assert line in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
