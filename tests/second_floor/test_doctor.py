"""Does the doctor find what keeps recipes from running, and name the cure?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hire_mlp_mm import doctor
from hire_mlp_mm.cli.doctor import screen
from hire_mlp_mm.doctor import FAULT, NOTE, OK
from tests.conftest import ROOT

WORKING = {
    "torch": "2.11.0",
    "torchvision": "0.26.0",
    "numpy": "1.26.4",
    "setuptools": "81.0.0",
    "opencv-python-headless": "4.11.0.86",
    "mmengine": "0.10.7",
    "mmcv-lite": "2.1.0",
    "mmdet": "3.3.0",
    "mmsegmentation": "1.2.2",
    "mmpretrain": "1.2.0",
    "ftfy": "6.3.1",
    "regex": "2026.9.29",
}
FORK = {
    "onedl-mmengine": "0.10.12",
    "onedl-mmcv": "2.3.6",
    "onedl-mmdetection": "3.5.1",
    "onedl-mmsegmentation": "1.4.2",
    "onedl-mmpretrain": "1.3.6",
}
UPSTREAM = ("mmengine", "mmcv-lite", "mmdet", "mmsegmentation", "mmpretrain")
LITE_OPS = dict(compiled=[], stood_in=["nms", "roi_align_forward"], missing=["softnms"])
SEEN = {"torch": dict(device="no GPU, 2 threads"), "ops": LITE_OPS}


@pytest.fixture
def diagnose(tmp_path):
    """Findings by name, of an environment with distributions without content."""

    def examine(changes: dict[str, str | None], seen: dict = SEEN) -> dict[str, doctor.Finding]:
        for name, version in {**WORKING, **changes}.items():
            if version is not None:
                write_metadata(tmp_path, name, version)
        return {one.name: one for one in doctor.examine([str(tmp_path)], seen)}

    return examine


def write_metadata(folder: Path, name: str, version: str) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (info / "METADATA").write_text(text)


def without(*names: str) -> dict[str, None]:
    return dict.fromkeys(names)


@pytest.mark.parametrize("stack", [{}, {**without(*UPSTREAM), **FORK, "numpy": "2.2.6"}])
def test_a_stack_that_works(stack, diagnose):
    found = diagnose(stack)
    assert doctor.is_well(list(found.values()))
    marked = {name for name, one in found.items() if one.level != OK}
    assert all(name.startswith("$") for name in marked)  # the data, which are not here
    assert found["torch"].text == "2.11.0, no GPU, 2 threads"
    assert found["mmcv's ops"].text.startswith("not compiled; torchvision stands in for nms, roi_")


FAULTS = {
    "two mmcv": (
        {"mmcv": "2.1.0"},
        "mmcv",
        "mmcv-lite 2.1.0 and mmcv 2.1.0 own one folder",
        "pip uninstall -y mmcv-lite mmcv && pip install mmcv-lite==2.1.0",
    ),
    "the fork over upstream": (
        {"onedl-mmdetection": "3.5.1"},
        "mmdet",
        "mmdet 3.3.0 and onedl-mmdetection 3.5.1 own one folder",
        "pip uninstall -y mmdet onedl-mmdetection && pip install mmdet==3.3.0",
    ),
    "a new mmcv": (
        {"mmcv-lite": "2.2.0"},
        "mmdet",
        "3.3.0 refuses mmcv 2.2.0; it takes 2.0.0 to below 2.2.0",
        "pip install 'mmcv-lite>=2.1,<2.2'",
    ),
    "undeclared": (without("ftfy"), "mmseg", "1.2.2 needs ftfy", "pip install ftfy"),
    "no torchvision": (
        without("torchvision"),
        "torchvision",
        "not installed",
        "pip install torchvision",
    ),
    "no mmcv": (without("mmcv-lite"), "mmcv", "not installed", "pip install 'mmcv-lite>=2.1,<2.2'"),
    "nothing": (
        without(*UPSTREAM),
        "OpenMMLab",
        "not installed: HireMLPNet works, recipes need it",
        "pip install 'hire_mlp_mm[lite]'",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_has_its_cure(name, diagnose):
    changes, where, text, cure = FAULTS[name]
    found = diagnose(changes)
    one = found[where]
    assert (one.level, one.text, one.cure) == (FAULT, one.text, cure)
    assert text in one.text
    assert not doctor.is_well(list(found.values()))


@pytest.mark.parametrize(
    ("changes", "where", "cure"),
    [
        ({"numpy": "2.3.0"}, "numpy", "pip install 'numpy<2'"),
        ({"setuptools": "82.0.1"}, "setuptools", "pip install 'setuptools<82'"),
        (without("setuptools"), "setuptools", "pip install 'setuptools<82'"),
        ({"opencv-python": "4.12.0"}, "cv2", "pip uninstall -y opencv-python-headless opencv-py"),
        (without("mmpretrain"), "mmpretrain", "pip install mmpretrain"),
    ],
)
def test_a_note_is_no_fault(changes, where, cure, diagnose):
    found = diagnose(changes)
    assert found[where].level == NOTE
    assert found[where].cure.startswith(cure)
    assert doctor.is_well(list(found.values()))


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        ("ModuleNotFoundError: No module named 'pkg_resources'", "pip install 'setuptools<82'"),
        ("ModuleNotFoundError: No module named 'addict'", "pip install addict"),
        ("ImportError: libGL.so.1: cannot", "pip install --force-reinstall --no-deps mmengine"),
    ],
)
def test_what_cannot_be_imported(error, cure, diagnose):
    found = diagnose({}, {**SEEN, "mmengine": dict(error=error)})["mmengine"]
    assert (found.level, found.cure) == (FAULT, cure)
    assert found.text == f"0.10.7 can't be imported: {error}"


def test_compiled_ops(diagnose):
    ops = dict(compiled=["nms", "softnms"], stood_in=[], missing=[])
    changes = {**without("mmcv-lite", "torchvision"), "mmcv": "2.1.0"}
    found = diagnose(changes, {**SEEN, "ops": ops})
    assert found["mmcv's ops"].text == "2 compiled"
    assert found["torchvision"].level == NOTE  # nothing needs it then


def test_data_that_are_there(diagnose, monkeypatch, tmp_path):
    monkeypatch.setenv("COCO_ROOT", str(tmp_path))
    monkeypatch.setenv("ADE_ROOT", "nowhere/")
    found = diagnose({})
    assert (found["$COCO_ROOT"].level, found["$COCO_ROOT"].text) == (OK, str(tmp_path))
    assert (found["$ADE_ROOT"].level, found["$ADE_ROOT"].text) == (NOTE, "nowhere/ not found")
    assert found["$IMAGENET_ROOT"].cure == "export IMAGENET_ROOT=FOLDER"


def run_doctor(*flags: str, **environment: str) -> tuple[int, dict[str, dict]]:
    """Exit code and findings of the command."""
    command = [sys.executable, *flags, "-m", "hire_mlp_mm", "doctor", "--json"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert not done.stderr, done.stderr
    said = json.loads(done.stdout)
    assert said["well"] == (done.returncode == 0)
    return done.returncode, {one["name"]: one for one in said["findings"]}


def test_this_environment():
    code, found = run_doctor()
    assert code == 0, [one for one in found.values() if one["level"] == FAULT]
    ops = found["mmcv's ops"]["more"]
    assert "nms" in ops["stood_in"] + ops["compiled"]
    assert {"tiny", "small", "base"} == found["weights"]["more"].keys()


def test_without_torch():
    code, found = run_doctor("-S")
    assert code == 1
    assert found["torch"]["level"] == found["OpenMMLab"]["level"] == FAULT


def test_a_broken_package(tmp_path):
    """An mmengine that raises, and a mmcv that takes its process down."""
    (tmp_path / "mmengine.py").write_text("raise ImportError('no such symbol')\n")
    (tmp_path / "mmcv.py").write_text("import os; os._exit(3)\n")
    code, found = run_doctor(PYTHONPATH=str(tmp_path))
    assert code == 1
    assert "can't be imported: ImportError: no such symbol" in found["mmengine"]["text"]
    assert "the process that imported it ended with 3" in found["mmcv"]["text"]


def test_a_screen(diagnose):
    findings = diagnose({"mmcv": "2.1.0"}, {**SEEN, "weights": dict(tiny=dict(found=True))})
    lines = screen(list(findings.values()))
    assert len(lines) <= 30
    assert all(len(line) <= 80 for line in lines if "->" not in line), lines
    assert "! mmcv            mmcv-lite 2.1.0 and mmcv 2.1.0 own one folder" in lines
    assert "1 fault (!) in the way of recipes; -> is the cure." in lines
