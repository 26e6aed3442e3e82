"""Does the ImageNet recipe train and test under the tools, the authors' weights included?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.conftest import ROOT
from tests.reference import classifier_state

# The recipe as it stands, on few images without workers.
SMALL = f"""
_base_ = "{ROOT}/configs/hire_t_imagenet.py"
train_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False)
val_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=1)
"""
LABELS = [7, 7, 7, 20]


@pytest.fixture
def imagenet(tmp_path) -> Path:
    """A folder as ImageNet's with lists of files, so that not all 1000 classes have to be there."""
    folder = tmp_path / "imagenet"
    (folder / "meta").mkdir(parents=True)
    for split, labels in (("train", LABELS * 2), ("val", LABELS)):
        (folder / split).mkdir()
        lines = []
        for i, label in enumerate(labels):
            Image.new("RGB", (240 + i, 230), (label * 10, 30 * i, 99)).save(
                folder / split / f"{i}.png"
            )
            lines.append(f"{i}.png {label}\n")
        (folder / f"meta/{split}.txt").write_text("".join(lines))
    (tmp_path / "small.py").write_text(SMALL)
    return folder


def accuracy(work_dir: Path) -> dict[str, float]:
    """What the last test run in a work dir wrote."""
    return json.loads(next(work_dir.glob("*/2*.json")).read_text())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_recipe_trains_and_is_tested(imagenet, tmp_path, fork_tool):
    env = {"IMAGENET_ROOT": str(imagenet)}
    work = ["--work-dir", tmp_path / "train"]
    done = fork_tool("tools/train.py", tmp_path / "small.py", *work, "--auto-scale-lr", env=env)
    assert done.returncode == 0, done.stderr
    assert "Epoch(train)" in done.stdout
    checkpoint = tmp_path / "train/epoch_1.pth"
    test = ["tools/test.py", tmp_path / "small.py", checkpoint, "--work-dir", tmp_path / "test"]
    done = fork_tool(*test, env=env)
    assert done.returncode == 0, done.stderr
    assert {"accuracy/top1", "accuracy/top5"} <= accuracy(tmp_path / "test").keys()


@pytest.mark.timeout(600)
def test_the_authors_weights(imagenet, tmp_path, fork_tool):
    """A made-up official file whose head is sure of class 7, which three of four images are."""
    state = classifier_state("tiny")
    state["head.bias"][7] = 1e6
    torch.save({"model": state, "epoch": 299}, tmp_path / "hire_mlp_tiny.pth")
    convert = ["tools/convert_checkpoint.py", tmp_path / "hire_mlp_tiny.pth", tmp_path / "c.pth"]
    done = fork_tool(*convert, "--classifier")
    assert done.returncode == 0, done.stderr
    test = ["tools/test.py", tmp_path / "small.py", tmp_path / "c.pth", "--work-dir", tmp_path]
    done = fork_tool(*test, env={"IMAGENET_ROOT": str(imagenet)})
    assert done.returncode == 0, done.stderr
    assert accuracy(tmp_path)["accuracy/top1"] == 75


def test_a_split_that_is_missing(imagenet, tmp_path, fork_tool):
    (imagenet / "val").rename(imagenet / "validation")
    done = fork_tool(
        "tools/train.py", tmp_path / "small.py", "--work-dir", tmp_path / "w",
        env={"IMAGENET_ROOT": str(imagenet)},
    )  # fmt: skip
    assert done.returncode == 2
    assert f"data folder {imagenet}/val not found (in val_dataloader)" in done.stderr
    assert "set IMAGENET_ROOT" in done.stderr
