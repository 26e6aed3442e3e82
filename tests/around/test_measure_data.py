"""Does the script that measures training data measure every step, and all images?"""

from __future__ import annotations

import measure_data
import pytest
from mmengine.registry import DefaultScope
from shapes import write_shapes

from hire_mlp_mm.engine import load_config


def test_the_tables(tmp_path, monkeypatch, capsys):
    write_shapes(tmp_path, train=3, val=1)
    monkeypatch.setenv("SHAPES_ROOT", f"{tmp_path}/")
    monkeypatch.setattr(
        "sys.argv",
        ["measure_data.py", "upernet_hire_nano_shapes", "--images", "8", "--workers", "0"],
    )
    measure_data.main()
    steps, rates = capsys.readouterr().out.strip().split("\n\n")
    names = [line.split("|")[1].strip() for line in steps.splitlines() if line.startswith("|")]
    cfg = load_config("upernet_hire_nano_shapes")
    pipeline = cfg.train_dataloader.dataset.pipeline
    assert names[2:] == [*(step["type"] for step in pipeline), "all"]
    assert float(rates.splitlines()[-1].split("|")[2]) > 0


@pytest.mark.parametrize("images", [2, 7])
def test_data_are_repeated_until_there_are_enough(images, tmp_path, monkeypatch):
    write_shapes(tmp_path, train=3, val=1)
    monkeypatch.setenv("SHAPES_ROOT", f"{tmp_path}/")
    cfg = load_config("upernet_hire_nano_shapes")
    with DefaultScope.overwrite_default_scope("mmseg"):
        cfg, dataset = measure_data.repeated(cfg, images)
    assert len(dataset) == 3
    assert len(dataset) * cfg.train_dataloader.dataset.times >= images
