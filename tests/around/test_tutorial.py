"""Is the notebook the tutorial's, and does it run from the first cell to the last?"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
import pytest

from hire_mlp_mm.engine import load_config
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "dev"))
import tutorial

TEXT = tutorial.SOURCE.read_text(encoding="utf-8")
RECIPE = "cascade_mask_rcnn_hire_nano_shapes"


def test_the_notebook_is_made_of_the_page():
    """`make tutorial` writes it; its sources are those of the page."""
    made, kept = tutorial.read_notebook(TEXT), nbformat.read(tutorial.TARGET, as_version=4)
    assert [(cell.cell_type, cell.source) for cell in made.cells] == [
        (cell.cell_type, cell.source) for cell in kept.cells
    ]


def test_the_notebook_shows_what_it_did():
    """Its outputs hold the figures and the pictures, and nothing of the machine."""
    notebook = nbformat.read(tutorial.TARGET, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(output.get("text", "") for output in outputs)
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert "coco/bbox_mAP: " in printed
    assert len(pictures) == 2
    assert not [output for output in outputs if output.output_type == "error"]
    assert str(Path.home()) not in printed
    assert tutorial.TARGET.stat().st_size < 2_000_000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_runs(tmp_path):
    """In an empty folder, with a shorter training."""
    iterations = load_config(RECIPE).train_cfg.max_iters
    train = "hire-mlp train desk_config.py --work-dir work"
    short = " ".join(
        [
            *(train, "--cfg-options", "train_cfg.max_iters=2", "train_cfg.val_interval=2"),
            *("default_hooks.checkpoint.interval=2", "model.test_cfg.rcnn.score_thr=0.0"),
        ]
    )
    assert TEXT.count(train) == 1
    assert TEXT.count(f"iter_{iterations}.pth") == 1
    text = TEXT.replace(train, short).replace(f"iter_{iterations}.pth", "iter_2.pth")
    notebook = tutorial.read_notebook(text)
    tutorial.run_notebook(notebook, tmp_path)
    assert (tmp_path / "desk_config_data.png").exists()
    assert len(list((tmp_path / "predicted/pictures").rglob("*.jpg"))) == 40
    assert (tmp_path / "predicted/predictions.json").exists()
