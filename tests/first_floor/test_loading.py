"""Does importing the package let everybody read mmengine's checkpoints, as data, and our names?"""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, load_checkpoint

from hire_mlp_mm import HireMLP, HireMLPNet, allowed, load_weights
from hire_mlp_mm.checkpoint import CheckpointError, convert_state_dict
from hire_mlp_mm.torch_file import load_data
from hire_mlp_mm.weights import WEIGHTS, cached_path
from tests.conftest import ROOT
from tests.hostile import Calls, exploits
from tests.reference import classifier_state

OTHERS = """
import argparse, numpy, sys, torch
class Mine: pass
def number(*args): return "theirs"
theirs = [(number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
torch.serialization.add_safe_globals([Mine, numpy.ndarray, *theirs])
"""
READ = """
import hire_mlp_mm, sys, torch
for path in sys.argv[1:]:
    try:
        log = torch.load(path)["log"]
        print(log.mean(), log.data[0].tolist())
    except Exception as error:
        print(type(error).__name__)
"""


def training() -> dict[str, object]:
    """What is in a training checkpoint of mmengine's."""
    return dict(
        state_dict=dict(x=torch.ones(2)),
        meta=dict(dataset_meta=ConfigDict(classes=("a", "b"))),
        log=HistoryBuffer([1.0, 2.0], [1, 1]),
        values=[np.float32(3), np.arange(6.0).reshape(2, 3).T, np.zeros(0), np.array(True)],
    )


def assert_training(data: dict[str, object]) -> None:
    log = data["log"]
    assert isinstance(log, HistoryBuffer)
    assert log.mean() == 1.5
    assert log.statistics("max") == 2
    assert [array.tolist() for array in log.data] == [[1.0, 2.0], [1, 1]]
    found = [np.asarray(value) for value in data["values"]]
    for value, expected in zip(found, training()["values"], strict=True):
        assert value.tolist() == np.asarray(expected).tolist()
        assert value.dtype == np.asarray(expected).dtype
    assert data["meta"]["dataset_meta"] == dict(classes=("a", "b"))


@pytest.fixture
def safe_globals():
    """Torch's list, which is put back afterwards."""
    before = torch.serialization.get_safe_globals()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


def run(code: str, *args: object) -> list[str]:
    """The lines that a program prints."""
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_after_the_import_torch_reads_a_training_checkpoint(tmp_path):
    """And refuses what would run code, and does neither before."""
    torch.save(training(), tmp_path / "log.pth")
    mark = tmp_path / "ran"
    (tmp_path / "bad.pth").write_bytes(exploits(mark, {})["os.system"])
    paths = [tmp_path / "log.pth", tmp_path / "bad.pth"]
    assert run(READ, *paths) == ["1.5 [1.0, 2.0]", "UnpicklingError"]
    without = READ.replace("import hire_mlp_mm, ", "import ")
    assert run(without, *paths) == ["UnpicklingError"] * 2
    assert not mark.exists()


def test_what_others_have_allowed_stays(tmp_path):
    """Ours is added; a name that has a meaning already keeps it, and our reader's own stay ours."""
    code = OTHERS + (
        "import hire_mlp_mm\n"
        "assert {Mine, numpy.ndarray, *theirs} <= set(torch.serialization.get_safe_globals())\n"
        "for value in (numpy.float32(3), argparse.Namespace(lr=1)):\n"
        "    torch.save(value, sys.argv[1])\n"
        "    try:\n        print(torch.load(sys.argv[1]))\n"
        "    except Exception as error:\n        print(type(error).__name__)\n"
    )
    assert run(code, tmp_path / "file.pth") == ["theirs", "UnpicklingError"]


def test_a_list_that_others_take_away_again_leaves_ours(safe_globals, tmp_path):
    """The fork of mmengine does so at each of its readings."""
    torch.save(training(), tmp_path / "log.pth")
    with torch.serialization.safe_globals([HistoryBuffer, np.dtype, np.ndarray, getattr]):
        pass
    assert_training(torch.load(tmp_path / "log.pth"))


def numpys_own() -> dict[str, object]:
    """What people allow, by advice that is found for this error."""
    multiarray = sys.modules[np.zeros(0).__reduce__()[0].__module__]
    found: dict[str, object] = {"numpy.dtype": np.dtype, "numpy.ndarray": np.ndarray}
    for name in ("_reconstruct", "scalar"):
        for core in ("core", "_core"):
            found[f"numpy.{core}.multiarray.{name}"] = getattr(multiarray, name)
    return found | {"builtins.getattr": getattr}


NAMES = ("dtype", "ndarray", "_reconstruct", "scalar", "getattr")


@pytest.mark.parametrize(
    "theirs", [c for n in range(len(NAMES) + 1) for c in itertools.combinations(NAMES, n)]
)
def test_numbers_mix_with_numpys_own(theirs, safe_globals, tmp_path):
    """Of one name torch takes anybody's; whichever it is, an honest file is read."""
    torch.save(training(), tmp_path / "log.pth")
    real = [(v, k) for k, v in numpys_own().items() if k.rpartition(".")[2] in theirs]
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(real)
    allowed.allow()  # as the import does
    assert_training(torch.load(tmp_path / "log.pth"))


POINTERS = {
    "array": Calls(np.ndarray, (1,), "O", b"A" * 8),
    "dtype": Calls(np.dtype, "O"),
    "dtype with a size": Calls(np.dtype, "V8"),
    "copy of a dtype": Calls(np.dtype, np.dtype("f8"), False, True),
    "class of a dtype": Calls(type(np.dtype("f8")), "O"),
    "objects": np.array([None]),
    "structure": np.zeros(1, dtype=[("a", "O")]),
}


@pytest.mark.parametrize("kind", POINTERS)
def test_numpy_in_a_file_builds_numbers_only(kind, tmp_path):
    """numpy's own classes could be told to make pointers of the file's bytes."""
    torch.save({"x": torch.ones(1), "log": POINTERS[kind]}, tmp_path / "file.pth")
    with pytest.raises((pickle.UnpicklingError, CheckpointError, TypeError)):
        torch.load(tmp_path / "file.pth")
    with pytest.raises(CheckpointError) as error:
        load_data(str(tmp_path / "file.pth"))
    assert str(tmp_path / "file.pth") in str(error.value)
    assert len(str(error.value).splitlines()) == 1


INTEGERS = [f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)]


@pytest.mark.parametrize("code", ["b1", *INTEGERS, "f2", "f4", "f8"])
def test_numpys_types_take_no_state_of_a_file(code, tmp_path):
    """They are one for the process: were they to take it, other arrays would change, too."""
    states = [np.dtype(like).__reduce__()[2] for like in ("O", "M8[s]")]
    before = np.dtype(code).__reduce__(), np.dtype(code).flags, np.dtype(code).itemsize
    for state in (*states, (3, ">", None, None, None, 99, 99, 63)):
        torch.save(Calls(np.dtype, code, False, True, state=state), tmp_path / "file.pth")
        assert load_data(str(tmp_path / "file.pth")) is np.dtype(code)
        after = np.dtype(code).__reduce__(), np.dtype(code).flags, np.dtype(code).itemsize
        assert after == before


def test_what_was_read_is_saved_as_plain_numbers(tmp_path):
    """A resumed run saves it, and may be resumed, where the package may be missing."""
    torch.save(training(), tmp_path / "log.pth")
    torch.save(load_data(str(tmp_path / "log.pth")), tmp_path / "again.pth")
    assert_training(load_data(str(tmp_path / "again.pth")))
    assert b"numbers_only" not in (tmp_path / "again.pth").read_bytes()


def test_getattr_gives_the_logs_methods_only(tmp_path):
    path = str(tmp_path / "file.pth")
    torch.save({"x": Calls(getattr, HistoryBuffer, "mean")}, path)
    assert load_data(path)["x"] is HistoryBuffer.mean
    for owner, name in ((HistoryBuffer, "__init__"), (torch.Size, "mean")):
        torch.save({"x": Calls(getattr, owner, name)}, path)
        with pytest.raises(CheckpointError, match="by getattr"):
            load_data(path)


# Names of weights ---------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path, monkeypatch) -> dict[str, torch.Tensor]:
    """Weights where a download would have put them."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    path = Path(cached_path(WEIGHTS["small"].url))
    path.parent.mkdir(parents=True)
    torch.save({"model": classifier_state("small")}, path)
    return convert_state_dict(classifier_state("small"))


def test_a_name_is_a_checkpoint_for_mmengine(published):
    """Of a whole model: its backbone, and the head of a classifier."""
    data = CheckpointLoader.load_checkpoint("hire-mlp://small", map_location="cpu")
    assert data["meta"]["source"] == WEIGHTS["small"].url
    backbone = {k[9:]: v for k, v in data["state_dict"].items() if k.startswith("backbone.")}
    assert backbone.keys() == {k for k in published if not k.startswith("head.")}
    assert all(torch.equal(value, published[key]) for key, value in backbone.items())
    assert torch.equal(data["state_dict"]["head.fc.weight"], published["head.weight"])


def test_a_whole_model_takes_its_backbone_from_a_name(published):
    from mmengine.registry import MODELS, DefaultScope

    cfg = dict(
        type="ImageClassifier",
        backbone=dict(type="HireMLP", out_indices=(3,)),
        neck=dict(type="GlobalAveragePooling"),
        head=dict(type="LinearClsHead", num_classes=1000, in_channels=512),
    )
    import mmpretrain.models  # noqa: F401

    with DefaultScope.overwrite_default_scope("mmpretrain"):
        model = MODELS.build(cfg)
    load_checkpoint(model, "hire-mlp://small", strict=True)
    assert torch.equal(model.backbone.stem.proj.weight, published["stem.proj.weight"])
    assert torch.equal(model.head.fc.bias, published["head.bias"])


@pytest.mark.parametrize("name", ["large", "huge", ""])
def test_a_name_that_was_not_published(name):
    for load in (CheckpointLoader.load_checkpoint, partial(load_weights, HireMLPNet("tiny"))):
        with pytest.raises(CheckpointError, match="no such weights were published") as error:
            load(f"hire-mlp://{name}")
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("kind", [HireMLPNet, HireMLP])
def test_load_weights(kind, published, capsys):
    net = kind("small")
    said = str(load_weights(net, "hire-mlp://small"))
    assert "hire_mlp_small.pth: loaded 793 tensors; dropped 2 without a place here (head)" in said
    assert len(said.splitlines()) == 1
    assert torch.equal(net.stem.proj.weight, published["stem.proj.weight"])
    with pytest.raises(CheckpointError, match="is a network with depths"):
        load_weights(kind("tiny"), "hire-mlp://small")
    assert capsys.readouterr() == ("", "")
