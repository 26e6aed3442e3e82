"""Does the command say what it can do, quickly, and in a line what is wrong?"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import hire_mlp_mm
from hire_mlp_mm import cli
from hire_mlp_mm.errors import UserError
from tests.conftest import ROOT


def outcome(capsys, *words: str) -> tuple[int, str, str]:
    """Exit code, output and errors of `hire-mlp` with some words."""
    code = 0
    try:
        cli.main(words)
    except SystemExit as end:
        code = end.code or 0
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"], []])
def test_help_is_one_screen_of_verbs(words, capsys):
    code, out, err = outcome(capsys, *words)
    assert (code, bool(out)) == ((0, True) if words else (2, False))
    lines = (out or err).splitlines()
    assert len(lines) <= 24
    assert all(len(line) <= 100 for line in lines)
    for verb in cli.VERBS:
        assert any(line.startswith(f"  {verb} ") for line in lines)


def test_version(capsys):
    assert outcome(capsys, "--version")[:2] == (0, f"hire_mlp_mm {hire_mlp_mm.__version__}\n")


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_of_a_verb(verb, capsys):
    code, out, _ = outcome(capsys, verb, "--help")
    assert code == 0
    assert f"usage: hire-mlp {verb}" in out
    assert cli.import_verb(verb).HELP


WRONG = {
    ("tran",): "hire-mlp: error: unknown verb 'tran'; did you mean 'train'?",
    ("benchmark",): "hire-mlp: error: unknown verb 'benchmark'; did you mean 'bench'?",
    ("xyz",): f"hire-mlp: error: unknown verb 'xyz'; expected one of {', '.join(cli.VERBS)}",
    ("--versoin",): "hire-mlp: error: unknown option '--versoin'; did you mean '--version'?",
    ("train", "a.py", "--cfg-option", "a=b"): "hire-mlp train: error: unknown option "
    "'--cfg-option'; did you mean '--cfg-options'?",
    ("test", "--fused"): "hire-mlp test: error: unknown option '--fused'; did you mean '--fuse'?",
    ("swap", "a.py", "--arhc=tiny"): "hire-mlp swap: error: unknown option '--arhc'; did you mean "
    "'--arch'?",
    ("convert", "a.pth", "b.pth", "--emma"): "hire-mlp convert: error: unknown option '--emma'; "
    "did you mean '--ema'?",
    ("export", "--bakcbone"): "hire-mlp export: error: unknown option '--bakcbone'; did you mean "
    "'--backbone'?",
    ("bench", "--form", "plain"): "hire-mlp bench: error: unknown option '--form'; did you mean "
    "'--forms'?",
    ("doctor", "--jsno"): "hire-mlp doctor: error: unknown option '--jsno'; did you mean '--json'?",
    ("convert", "a.pth"): "hire-mlp convert: error: the following arguments are required: target; "
    "see hire-mlp convert --help",
    ("convert", "gone.pth", "b.pth"): "hire-mlp convert: error: weight file gone.pth not found",
    ("swap", "cascade_mask_rcnn_hire_x_coco"): "hire-mlp swap: error: config "
    "cascade_mask_rcnn_hire_x_coco not found, nor a recipe of that name; near it: ",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_mistake_is_one_line_and_exit_code_2(words, capsys):
    code, out, err = outcome(capsys, *words)
    assert code == 2
    assert err.startswith(WRONG[words])
    assert (out, err.count("\n")) == ("", 1)


@pytest.mark.parametrize("name", ["retinanet_hire_t_1x_coco", "retinanet_hire_t_1x_coco.py"])
@pytest.mark.parametrize("package", ["", "hire_mlp_mm::"])
def test_a_recipe_by_name(name, package, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if package and not name.endswith(".py"):
        name += ".py"
    err = outcome(capsys, "swap", f"{package}{name}")[2]
    assert err == "hire-mlp swap: error: model.backbone is HireMLP already; set its arch by hand\n"


def test_the_command_is_quick():
    """Help and mistakes import neither torch nor OpenMMLab."""
    code = (
        "import sys\n"
        "sys.argv = ['hire-mlp', *sys.argv[1:]]\n"
        "from hire_mlp_mm.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    heavy = {'torch', 'mmengine', 'mmcv', 'numpy'} & set(sys.modules)\n"
        "    assert not heavy, heavy\n"
    )
    for word, status in (("--help", 0), ("--version", 0), ("tran", 2)):
        command = [sys.executable, "-c", code, word]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("a word for people"), "tool: error: a word for people"),
        (FileNotFoundError(2, "No such file", "a.txt"), "tool: error: a.txt not found"),
        (FileNotFoundError("Traceback\nof a worker\nb.txt is gone"), "tool: error: b.txt is gone"),
        (
            ModuleNotFoundError("No module named 'mmdet.x'", name="mmdet.x"),
            "tool: error: mmdet is not installed; 'hire-mlp doctor' says what is missing",
        ),
    ],
)
def test_what_a_user_can_put_right(error, line, capsys):
    def work() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        cli.run(work, "tool")
    assert end.value.code == 2
    assert capsys.readouterr().err == f"{line}\n"


def test_a_fault_of_ours_is_a_traceback():
    def work() -> None:
        raise ModuleNotFoundError("No module named 'hire_mlp_mm.x'", name="hire_mlp_mm.x")

    with pytest.raises(ModuleNotFoundError):
        cli.run(work, "tool")


def test_exit_codes(capsys):
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: 1, "tool")
    assert end.value.code == 1

    def wrong() -> None:
        raise cli.OutcomeError("it differs")

    with pytest.raises(SystemExit) as end:
        cli.run(wrong, "tool")
    assert end.value.code == 1
    assert capsys.readouterr().err == "tool: error: it differs\n"


@pytest.mark.parametrize(
    ("words", "keeps"),
    [
        (("train", "missing.py"), True),
        (("test", "missing.py", "missing.pth"), True),
        (("predict", "missing.pth", "missing.jpg", "--out", "out"), True),
        (("export", "missing.py", "missing.onnx"), False),
    ],
)
def test_what_runs_a_model_again_and_again_keeps_memory(words, keeps, capsys, monkeypatch):
    kept = []
    module = cli.import_verb(words[0])
    monkeypatch.setattr(module, "keep_memory", lambda: kept.append(True), raising=False)
    assert outcome(capsys, *words)[0] == 2
    assert bool(kept) == keeps


def test_one_process_of_several_speaks(capsys, monkeypatch):
    """The others stay silent, unless they alone know."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    shared, own = UserError("known to all"), UserError("known to one")
    own.shared = False
    for error, said in ((shared, ""), (own, "tool: error: known to one\n")):

        def work(error: UserError = error) -> None:
            raise error

        with pytest.raises(SystemExit):
            cli.run(work, "tool")
        assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("train", ["gone.py"]),
        ("test", ["gone.py", "gone.pth"]),
        ("swap_backbone", ["gone.py"]),
        ("export_onnx", ["gone.py", "a.pt2"]),
        ("benchmark", ["--size", "1"]),
        ("convert_checkpoint", ["gone.pth", "a.pth"]),
    ],
)
def test_the_tools_are_the_verbs(script, words, fork_tool, tmp_path):
    """Under their own names in errors, and from any folder."""
    tool = os.path.join(ROOT, "tools", f"{script}.py")
    done = fork_tool(tool, *words, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{script}.py: error: ")
    assert done.stderr.count("\n") == 1


def test_an_interrupted_command_says_so(capsys):
    def work() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        cli.run(work, "train.py")
    assert stop.value.code == 130
    assert capsys.readouterr().err == "train.py: error: interrupted\n"
