"""Are the study's networks what its page says, and does its page say what its runs gave?"""

from __future__ import annotations

import inspect
import itertools
import json
import re

import numpy as np
import pytest
import study
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from PIL import Image

from hire_mlp_mm import engine
from hire_mlp_mm.errors import UserError

SHARED = list(inspect.signature(Runner).parameters)


def build(config: str):
    cfg = Config.fromfile(study.CONFIGS / f"{config}.py")
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    model.init_weights()
    return model, cfg


@pytest.fixture(scope="module")
def images():
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def whole():
    return build("hire_cifar10")[0]


@pytest.mark.parametrize("name", study.ABLATED)
def test_an_ablated_network_computes_something_else_and_learns(name, whole, images):
    """With the whole network's weights, as far as it has them."""
    model, _ = build(f"{name}_cifar10")
    own = model.state_dict()
    fitting = {k: v for k, v in whole.state_dict().items() if k in own and own[k].shape == v.shape}
    assert len(fitting) > len(own) / 2
    model.load_state_dict(fitting, strict=False)
    with torch.no_grad():
        assert not torch.allclose(model.train()(images), whole.train()(images), rtol=1e-3)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    labels, losses = torch.tensor([0, 1, 2, 3]), []
    for _ in range(3):
        losses.append(torch.nn.functional.cross_entropy(model(images, mode="tensor"), labels))
        optimizer.zero_grad()
        losses[-1].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    assert losses[-1] < losses[0]


def readers_channels(config: str) -> list[int]:
    """The channels that what comes after the backbone expects."""
    model = Config.fromfile(study.CONFIGS / f"{config}.py").model
    reader = model.get("decode_head") or model.get("head") or model.neck
    return reader.in_channels if isinstance(reader.in_channels, list) else [reader.in_channels]


def work_of(config: str) -> study.Work:
    return study.count_work(Config.fromfile(study.CONFIGS / f"{config}.py"))


@pytest.mark.parametrize("task", study.TASKS)
def test_backbones_have_equal_multiply_adds(task):
    ours = work_of(f"hire_{task}").macs
    for name in study.BACKBONES:
        work = work_of(config := f"{name}_{task}")
        assert work.macs == pytest.approx(ours, rel=0.05), name
        assert work.channels == readers_channels(config)


@pytest.mark.parametrize("name", study.BACKBONES)
@pytest.mark.parametrize("task", study.TASKS)
def test_no_default_holds_a_backbone_back(task, name):
    """All of it learns, and all the time."""
    backbone = build(f"{name}_{task}")[0].backbone
    backbone.train()
    assert all(p.requires_grad for p in backbone.parameters())
    assert all(module.training for module in backbone.modules())
    for module in backbone.modules():
        assert not getattr(module, "drop_prob", 0)


@pytest.mark.parametrize("name", study.BACKBONES)
def test_the_edition_for_a_gpu_has_the_papers_sizes(name, monkeypatch):
    monkeypatch.setenv("STUDY_SIZE", "paper")
    work = work_of(config := f"{name}_camvid")
    assert 20e6 < work.params < 33e6
    assert work.channels == readers_channels(config)


@pytest.mark.parametrize("name", study.BACKBONES)
@pytest.mark.parametrize("task", study.TASKS)
def test_backbones_share_the_rest(task, name):
    """All that the runner reads, but the backbone and the channels that it gives."""
    cfgs = [Config.fromfile(study.CONFIGS / f"{one}_{task}.py") for one in (name, "hire")]
    for cfg in cfgs:
        del cfg.model["backbone"]
        for part in ("neck", "head", "decode_head", "auxiliary_head"):
            cfg.model.get(part, {}).pop("in_channels", None)
    ours, others = ({key: cfg[key] for key in SHARED if key in cfg} for cfg in cfgs)
    assert ours == others
    assert {"train_dataloader", "val_evaluator", "param_scheduler"} <= ours.keys()


def test_a_run_leaves_its_curve_and_its_line(tmp_path, monkeypatch):
    """Of two steps on six images, ended between them, and an evaluation after each."""
    noise = np.random.default_rng(0)
    for split, name in itertools.product(("train", "test"), ("cat", "dog", "frog")):
        folder = tmp_path / "data/cifar10" / split / name
        folder.mkdir(parents=True)
        Image.fromarray(noise.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / "0.png")
    monkeypatch.setenv("STUDY_DATA", str(tmp_path / "data"))
    run = study.Run("hire_no_gate_cifar10", 0)
    path, folder = str(study.CONFIGS / f"{run.config}.py"), tmp_path / "run"
    for steps in (1, 2):
        options = {"train_cfg.max_iters": steps, "train_cfg.val_interval": 1}
        engine.train(engine.load_config(path, str(folder), options), resume="auto")
    with pytest.raises(UserError, match=r"no evaluation of step 1950; look at .*run\.txt"):
        study.record_of(run, folder, "nano", "cpu")
    monkeypatch.setattr(study, "CONFIGS", tmp_path)
    cfg = Config.fromfile(path)
    cfg.train_cfg.max_iters = 2
    cfg.dump(tmp_path / f"{run.config}.py")
    made = study.record_of(run, folder, "nano", "cpu")
    (first, seconds, _), (last, more, figure) = made["curve"]
    assert (first, last) == (1, 2)
    assert 0 < seconds < more
    assert made["batch"] == 128
    assert made["figure"] == figure
    assert f"accuracy/top1: {figure:.2f}" in made["line"]


def test_runs_of_a_seed_come_before_those_of_the_next():
    runs = study.all_runs([0, 1])
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert len(set(runs)) == len(runs) == 34
    assert {f"{run.config}.py" for run in runs} == {p.name for p in study.CONFIGS.glob("*.py")}
    assert len(study.all_runs([0], ["camvid"])) == 4
    with pytest.raises(UserError, match="--only coco"):
        study.all_runs([0], ["coco"])


# The page ---------------------------------------------------------------------------------------

FIGURES = {("hire", 0): 70.0, ("hire", 1): 71.0, ("hire_no_shift", 0): 69.5, ("swin", 0): 60.0}


def record(name: str, seed: int, figure: float, task: str = "cifar10") -> dict:
    curve = [(100, 60, figure / 2), (200, 126, figure)]
    line = f"Iter(val) [20/20] accuracy/top1: {figure:.4f}"
    return dict(
        size="nano", config=f"{name}_{task}", seed=seed, figure=figure, params=1_234_567,
        macs=20_400_000, batch=128, curve=curve, line=line, machine="a machine",
    )  # fmt: skip


def write(path, records) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in records))


@pytest.fixture
def page(tmp_path):
    """A page made of the runs of two sessions."""
    path = tmp_path / "docs/accuracy.md"
    write(path.with_suffix(".jsonl"), [record("hire", 0, 0.1), record("swin", 0, 60.0)])
    path.write_text(study.PAGE.read_text())
    records = [record(*run, figure) for run, figure in FIGURES.items() if run[0] != "swin"]
    write(tmp_path / "out/nano/results.jsonl", records)
    study.write_report(tmp_path / "out", path)
    return path


def cells(page, start: str) -> list[str]:
    rows = [row for row in page.read_text().splitlines() if row.startswith(f"| {start}")]
    return [cell.strip() for cell in rows[0].strip("|").split("|")]


def test_a_page_of_a_part_of_the_runs(page):
    whole = cells(page, "the whole network")
    assert whole[1:5] == ["`hire_cifar10`", "1.23 M", "20 M", "2"]
    assert whole[5:] == ["70.50 (70.00 to 71.00)", "+0.00 (-0.50 to +0.50)", "-"]
    ablated = cells(page, "no cross-region")
    assert ablated[4:] == ["1", "69.50", "-0.50", "-0.72"]  # to the whole network of that seed
    assert cells(page, "Swin")[4:] == ["1", "60.00", "2.1"]
    assert "accuracy/top1: 71.0000" in cells(page, "`hire_cifar10` | 1")[-1]
    text = page.read_text()
    assert "CIFAR-10: of 9 configs 3 with seed 0, 1 with seed 1; BCCD" in text
    assert "CamVid, UperNet: of 4 configs none" in text
    assert "GPU:** nothing yet." in text
    assert "no channel branch |" not in text
    assert "Nothing of this has run yet." in text
    shown = re.findall(r"!\[.*\]\((images/.*)\)", text)
    assert len(shown) == 2
    for name in shown:
        assert (page.parent / name).stat().st_size > 5000


def test_a_second_report_changes_nothing(page, tmp_path):
    before = page.read_text(), page.with_suffix(".jsonl").read_text()
    assert len(before[1].splitlines()) == len(FIGURES)
    study.write_report(tmp_path / "nothing_here", page)
    assert (page.read_text(), page.with_suffix(".jsonl").read_text()) == before


def test_the_published_page_is_that_of_its_results(tmp_path):
    results = study.PAGE.with_suffix(".jsonl")
    records = study.read_records(results)
    assert study.with_tables(study.PAGE.read_text(), records) == study.PAGE.read_text()


def test_the_curve_of_a_run_that_was_resumed(tmp_path):
    run = study.Run("hire_bccd", 0)
    first = [dict(step=1, loss=1.0), dict(step=1, training_seconds=9.0)]  # which found nothing
    again = [{"step": 2, "training_seconds": 20.0, "coco/bbox_mAP": 0.25}]
    write(tmp_path / "20261126_100000/vis_data/scalars.json", first)
    write(tmp_path / "20261126_110000/vis_data/scalars.json", again)
    log = "x\nnow - Iter(val) [9/9]    coco/bbox_mAP: 0.2500  time: 1\n"
    (tmp_path / "20261126_110000/20261126_110000.log").write_text(log)
    assert study.read_curve(run, tmp_path) == [(1, 9.0, 0.0), (2, 20.0, 25.0)]
    assert study.last_line(run, tmp_path) == "Iter(val) [9/9] coco/bbox_mAP: 0.2500 time: 1"


def test_missing_data_are_named(tmp_path):
    with pytest.raises(UserError, match=r"camvid/annotations/train is missing; see .* --help"):
        study.check(tmp_path, "nano", "cpu", [study.Run("hire_camvid", 0)])
