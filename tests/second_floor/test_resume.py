"""Is nothing lost when a training is killed, its files are damaged, or the disk is full?"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import random
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import chaos
import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import BaseMetric
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import DATASETS, METRICS, MODELS, OPTIM_WRAPPERS
from mmengine.runner import Runner
from torch import nn

from hire_mlp_mm import files
from hire_mlp_mm.engine import harden, resume, run
from hire_mlp_mm.engine.hooks import CatchUpHook, PlaceHook
from hire_mlp_mm.engine.randomness import PlacedBatchSampler
from hire_mlp_mm.errors import UserError

# A training that takes a fraction of a second --------------------------------------------------

NUMBERS = itertools.count()  # of the trainings
SAMPLES = 11  # 3 batches of 3 and one of 2


@DATASETS.register_module()
class Data(torch.utils.data.Dataset):
    """Random in all three ways."""

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        noise = random.random() + np.random.rand() + torch.rand(4)
        return dict(inputs=index + noise)

    def get_data_info(self, index):
        return dict(width=1 + index % 3, height=2)


@MODELS.register_module()
class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.ReLU())

    def forward(self, inputs, mode="tensor"):
        out = self.layers(torch.stack(inputs))
        return dict(loss=out.square().mean()) if mode == "loss" else list(out)


@METRICS.register_module()
class Score(BaseMetric):
    """Says something of the weights, and goes up and down."""

    def process(self, data_batch, data_samples):
        self.results.extend(float(sample.sum()) for sample in data_samples)

    def compute_metrics(self, results):
        return dict(score=sum(results) % 1)


class CrashError(Exception):
    pass


class CrashHook(Hook):
    """Ends a training somewhere, after an iteration or before a validation."""

    priority = "LOWEST"

    def __init__(self, iteration=None, validation=None):
        self.iteration, self.validation = iteration, validation

    def after_train_iter(self, runner, *_, **__):
        if runner.iter + 1 == self.iteration:
            raise CrashError

    def before_val_epoch(self, runner):
        if runner.iter == self.validation:
            raise CrashError


def loader(sampler, **settings):
    sampler = dict(type=sampler, shuffle=True)
    return dict(
        dict(dataset=dict(type="Data"), sampler=sampler, batch_size=3, num_workers=0), **settings
    )


ASPECT = dict(type="mmdet.AspectRatioBatchSampler")
WORKERS = dict(num_workers=2, persistent_workers=True)
LOOPS = {
    "endless": (loader("InfiniteSampler"), False, dict(interval=3)),
    "endless by shape": (loader("InfiniteSampler", batch_sampler=ASPECT), False, dict(interval=3)),
    "endless, workers": (loader("InfiniteSampler", **WORKERS), False, dict(interval=3)),
    "over and over": (loader("DefaultSampler"), False, dict(interval=3)),
    "epochs": (loader("DefaultSampler"), True, dict(interval=1)),
    "epochs by shape": (loader("DefaultSampler", batch_sampler=ASPECT), True, dict(interval=1)),
    "epochs, workers": (loader("DefaultSampler", **WORKERS), True, dict(interval=1)),
    "within epochs": (loader("DefaultSampler"), True, dict(interval=3, by_epoch=False)),
}
ITERATIONS = 16  # 4 epochs


def train(
    work_dir, data, by_epoch, checkpoint, crash=None, start="auto", seed=0, wrapper="OptimWrapper",
    apart=False, hooks=(), **settings,
):  # fmt: skip
    """Train the model in this process, by anybody's runner; the settings are a config's."""
    if by_epoch:
        loop = dict(by_epoch=True, max_epochs=ITERATIONS // 4)
    else:
        loop = dict(by_epoch=False, max_iters=ITERATIONS, val_interval=3)
    cfg = Config(dict(
        model=dict(type="Model"),
        work_dir=str(work_dir),
        train_dataloader=data,
        val_dataloader=dict(loader("DefaultSampler"), num_workers=0),
        train_cfg=loop,
        val_cfg=dict(),
        val_evaluator=dict(type="Score"),
        optim_wrapper=dict(type=wrapper, optimizer=dict(type="AdamW", lr=0.05)),
        param_scheduler=[
            dict(type="LinearLR", start_factor=0.1, by_epoch=False, end=7),
            dict(type="ReduceOnPlateauLR", monitor="score", patience=0, end=ITERATIONS),
        ],
        default_hooks=dict(
            checkpoint=dict(
                dict(type="CheckpointHook", by_epoch=by_epoch, max_keep_ckpts=2), **checkpoint,
                save_best="score", rule="greater",
            )
        ),
        custom_hooks=[dict(type="EMAHook", momentum=0.1), *hooks],
        randomness=dict(seed=seed, diff_rank_seed=apart),
        experiment_name=f"{Path(work_dir).name}-{next(NUMBERS)}",  # or it would share their log
        log_level="WARNING",
        resume=start is not None,
        load_from=None if start == "auto" else start,
        **settings,
    ))  # fmt: skip
    runner = Runner.from_cfg(harden(cfg))
    runner.register_hook(crash or CrashHook())
    runner.train()
    return runner


@pytest.fixture
def fast(guarded, monkeypatch):
    """No waiting: for the disk, where mmengine begins the data anew, for the config's layout."""
    import mmdet.datasets  # noqa: F401  its batch sampler

    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.setattr("mmengine.runner.loops.time", SimpleNamespace(sleep=lambda seconds: None))
    # Each checkpoint holds the config's text, whose layout takes longer than the training.
    monkeypatch.setattr(Config, "pretty_text", "text = 'of the config'")


def result(work_dir):
    return chaos.Training(Path(), Path(work_dir)).result()


def names(work_dir):
    return {path.name for path in Path(work_dir).glob("*.pth*")}


CRASHES = {
    "any iteration": dict(iteration=11),
    "a checkpoint's iteration": dict(iteration=12),
    "before a validation": dict(validation=12),
}


@pytest.mark.parametrize("loop", LOOPS)
def test_a_training_that_ended_goes_on_bit_for_bit(loop, fast, tmp_path):
    train(tmp_path / "whole", *LOOPS[loop])
    wanted = result(tmp_path / "whole")
    crashes = CRASHES if "workers" not in loop else list(CRASHES)[:1]
    for crash in crashes:
        work_dir = tmp_path / crash
        with pytest.raises(CrashError):
            train(work_dir, *LOOPS[loop], CrashHook(**CRASHES[crash]))
        runner = train(work_dir, *LOOPS[loop])
        assert runner.iter == ITERATIONS
        assert chaos.difference(wanted, result(work_dir)) is None, crash
        assert names(work_dir) == names(tmp_path / "whole")


def test_what_a_config_puts_into_checkpoints(fast, tmp_path, monkeypatch):
    """It is read again, or training stops at the first of them."""
    data, by_epoch, checkpoint = LOOPS["endless"]
    odd = dict(skeleton=ConfigDict(a=1), palette=np.ones((2, 3), np.uint8), half=np.float16(1))
    monkeypatch.setattr(Data, "metainfo", odd, raising=False)
    with pytest.raises(CrashError):
        train(tmp_path / "a", data, by_epoch, checkpoint, CrashHook(iteration=5))
    assert train(tmp_path / "a", data, by_epoch, checkpoint).iter == ITERATIONS
    loaded = torch.load(tmp_path / "a/iter_16.pth")["meta"]["dataset_meta"]
    assert loaded["skeleton"] == dict(a=1)
    assert np.array_equal(loaded["palette"], odd["palette"])
    monkeypatch.setattr(Data, "metainfo", dict(folder=Path("a")))
    message = r"what this training saves cannot be loaded: .*iter_3.pth refused: .*PosixPath"
    with pytest.raises(UserError, match=message):
        train(tmp_path / "b", data, by_epoch, checkpoint)


def test_a_drawn_seed_is_taken_from_the_checkpoint(fast, tmp_path):
    with pytest.raises(CrashError):
        train(tmp_path / "a", *LOOPS["epochs"], CrashHook(iteration=5), seed=None)
    seed = torch.load(tmp_path / "a/epoch_1.pth")["meta"]["seed"]
    train(tmp_path / "a", *LOOPS["epochs"], seed=None)
    train(tmp_path / "b", *LOOPS["epochs"], seed=seed)
    assert chaos.difference(result(tmp_path / "b"), result(tmp_path / "a")) is None


@OPTIM_WRAPPERS.register_module()
class Scaled(AmpOptimWrapper):
    """Mmengine's, whose constructor refuses a CPU; what follows does not."""

    def __init__(self, **settings):
        scale = dict(init_scale=2.0**10, growth_interval=3)
        if torch.cuda.is_available():
            super().__init__(loss_scale=scale, **settings)
            return
        OptimWrapper.__init__(self, **settings)
        self.loss_scaler = torch.amp.GradScaler("cpu", **scale)
        self._scale_update_param, self.cast_dtype = None, torch.bfloat16


def test_a_gradient_scaler_goes_on(fast, tmp_path):
    train(tmp_path / "whole", *LOOPS["endless"], wrapper="Scaled")
    crash = CrashHook(iteration=11)
    with pytest.raises(CrashError):
        train(tmp_path / "crash", *LOOPS["endless"], crash, wrapper="Scaled")
    train(tmp_path / "crash", *LOOPS["endless"], wrapper="Scaled")
    wanted = result(tmp_path / "whole")
    scaler = wanted[f"iter_{ITERATIONS}.pth"]["optimizer"]["loss_scaler"]
    assert scaler["scale"] == 2.0 ** (10 + ITERATIONS // 3)
    assert chaos.difference(wanted, result(tmp_path / "crash")) is None


def test_mixed_precision_goes_on_bit_for_bit(fast, tmp_path):
    hooks = [dict(type="hire_mlp_mm.FormHook", training=True, dtype="bfloat16")]
    train(tmp_path / "float32", *LOOPS["endless"])
    train(tmp_path / "whole", *LOOPS["endless"], hooks=hooks)
    with pytest.raises(CrashError):
        train(tmp_path / "crash", *LOOPS["endless"], CrashHook(iteration=11), hooks=hooks)
    train(tmp_path / "crash", *LOOPS["endless"], hooks=hooks)
    wanted = result(tmp_path / "whole")
    assert chaos.difference(wanted, result(tmp_path / "crash")) is None
    assert chaos.difference(wanted, result(tmp_path / "float32")) is not None


def test_a_step_draws_what_its_number_says():
    hook = PlaceHook()

    def drawn(iteration):
        hook.before_train_iter(SimpleNamespace(iter=iteration, seed=7))
        return random.random(), np.random.rand(), float(torch.rand(()))

    first, second = drawn(0), drawn(1)
    assert not set(first) & set(second)
    assert drawn(0) == first


def test_a_full_disk(fast, tmp_path, monkeypatch):
    """The old checkpoints are there, the new one isn't, and training goes on when there is room."""
    train(tmp_path / "whole", *LOOPS["endless"])

    def full(file):
        if os.readlink(f"/proc/self/fd/{file}").endswith("/iter_12.pth.part"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    message = "iter_12.pth cannot be written: No space left on device; .* a resumed run goes on"
    with pytest.raises(UserError, match=message):
        train(tmp_path / "full", *LOOPS["endless"])
    after = names(tmp_path / "full")
    assert {name for name in after if not name.startswith("best")} == {"iter_6.pth", "iter_9.pth"}
    for path in (tmp_path / "full").glob("*.pth"):
        resume.check_undamaged(str(path))
    monkeypatch.setattr(os, "fsync", lambda file: None)
    train(tmp_path / "full", *LOOPS["endless"])
    assert chaos.difference(result(tmp_path / "whole"), result(tmp_path / "full")) is None
    assert names(tmp_path / "full") == names(tmp_path / "whole")


# Which checkpoint ---------------------------------------------------------------------------------


def save(path, iteration, time="20260101_000000", **meta):
    meta = dict(meta, epoch=0, iter=iteration, time=time)
    hub = dict(log_scalars={}, runtime_info={}, resumed_keys={})
    parts = dict(meta=meta, message_hub=hub, optimizer={})
    torch.save(dict(parts, state_dict=dict(weight=torch.ones(10_000))), path)
    (path.parent / resume.NOTE).write_text(str(path))


def start(work_dir, caplog, named=None):
    """Path that a training would go on from, and what it would say."""
    logger = logging.getLogger("start")
    hook = CheckpointHook(by_epoch=False)
    runner = SimpleNamespace(work_dir=str(work_dir), hooks=[hook], logger=logger)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        found = resume.find_start(runner, named)
    return Path(found.path).name if found else None, caplog.text


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    """Another value in a tensor, which torch reads without a word."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    torch.load(path)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_newest_checkpoint_is_passed_over(damage, tmp_path, caplog):
    for iteration in (5, 10, 20):
        save(tmp_path / f"iter_{iteration}.pth", iteration)
    assert start(tmp_path, caplog)[0] == "iter_20.pth"
    damage(tmp_path / "iter_20.pth")
    name, said = start(tmp_path, caplog)
    assert name == "iter_10.pth"
    assert len(said.splitlines()) == 1
    assert "iter_20.pth" in said
    assert "going on from" in said
    for iteration in (5, 10):
        cut(tmp_path / f"iter_{iteration}.pth")
    with pytest.raises(UserError, match=r"iter_5\.pth.*no whole checkpoint is left"):
        start(tmp_path, caplog)
    with pytest.raises(UserError, match=r"iter_10\.pth"):
        start(tmp_path, caplog, str(tmp_path / "iter_10.pth"))


@pytest.mark.parametrize("note", [None, "", "\0\0", "/gone/iter_3.pth"])
def test_without_a_good_note(note, tmp_path, caplog):
    save(tmp_path / "iter_9.pth", 9)
    save(tmp_path / "iter_10.pth", 10)
    (tmp_path / resume.NOTE).unlink()
    if note is not None:
        (tmp_path / resume.NOTE).write_text(note)
    assert start(tmp_path, caplog)[0] == "iter_10.pth"


def test_files_of_an_earlier_training_are_older(tmp_path, caplog):
    save(tmp_path / "iter_90.pth", 90, "20250101_000000")
    save(tmp_path / "iter_10.pth", 10)
    assert start(tmp_path, caplog)[0] == "iter_10.pth"


@pytest.fixture
def time_zone(monkeypatch):
    def move_to(name):
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield move_to
    monkeypatch.undo()
    time.tzset()


def test_the_newest_is_the_newest_in_every_time_zone(fast, tmp_path, time_zone):
    time_zone("UTC-2")  # two hours ahead
    with pytest.raises(CrashError):
        train(tmp_path, *LOOPS["endless"], CrashHook(iteration=8))
    time_zone("UTC")
    with pytest.raises(CrashError):
        train(tmp_path, *LOOPS["endless"], CrashHook(iteration=11))
    later = train(tmp_path, *LOOPS["endless"])
    assert Path(later.train_loop.start.path).name == "iter_9.pth"


class BetterAndBetter(BaseMetric):
    number = itertools.count()

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(score=float(next(self.number)))


@pytest.mark.parametrize("copied", [False, True])
def test_a_branch_leaves_the_training_it_comes_from_alone(copied, fast, tmp_path, monkeypatch):
    """Its checkpoint holds paths of the other's best one, which mmengine would remove."""
    monkeypatch.setitem(METRICS.module_dict, "Score", BetterAndBetter)
    with pytest.raises(CrashError):
        train(tmp_path / "a", *LOOPS["endless"], CrashHook(iteration=11))
    before = names(tmp_path / "a")
    if copied:
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        train(tmp_path / "b", *LOOPS["endless"])
    else:
        train(tmp_path / "b", *LOOPS["endless"], start=str(tmp_path / "a/iter_9.pth"))
    assert names(tmp_path / "a") == before
    best = {"best_score_iter_9.pth"} if copied else set()  # a copy's are not known for its own
    assert {n for n in names(tmp_path / "b") if "best" in n} == best | {"best_score_iter_16.pth"}


def test_a_copy_goes_on_from_its_own_checkpoint(fast, tmp_path):
    """Its note has the path of the original, which goes another way since."""
    with pytest.raises(CrashError):
        train(tmp_path / "a", *LOOPS["endless"], CrashHook(iteration=11))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with pytest.raises(CrashError):
        train(tmp_path / "a", *LOOPS["endless"], CrashHook(iteration=11), start=None, seed=5)
    went_on = train(tmp_path / "b", *LOOPS["endless"])
    assert went_on.train_loop.start.path == str(tmp_path / "b/iter_9.pth")
    assert went_on.seed == 0


def test_nothing_to_go_on_from(tmp_path, caplog):
    name, said = start(tmp_path, caplog)
    assert name is None
    assert "training starts from the beginning" in said


def test_weights_are_not_a_training(tmp_path, caplog):
    torch.save(dict(weight=torch.ones(1)), tmp_path / "weights.pth")
    with pytest.raises(UserError, match="holds no state of a training"):
        start(tmp_path, caplog, str(tmp_path / "weights.pth"))


def test_weights_beside_a_training_are_not_gone_on_from(fast, tmp_path):
    """The best checkpoint and a published one: mmengine would take a fresh optimizer with them."""
    data, by_epoch, checkpoint = LOOPS["endless"]
    kept = ["meta", "state_dict", "message_hub"]
    train(tmp_path, data, by_epoch, dict(checkpoint, published_keys=kept))
    (published,) = tmp_path.glob("iter_16-*.pth")
    best = next(path for path in tmp_path.glob("best*.pth") if "-" not in path.name)
    for path in (best, published):
        with pytest.raises(UserError, match=rf"{path} holds no state of a training"):
            train(tmp_path, *LOOPS["endless"], start=str(path))
    went_on = train(tmp_path, *LOOPS["endless"])
    assert went_on.train_loop.start.path == str(tmp_path / "iter_16.pth")


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    replace = os.replace

    def look(part, name):
        assert path.read_bytes() == b"old"
        assert Path(part).read_bytes() == b"new"
        replace(part, name)

    monkeypatch.setattr(os, "replace", look)
    files.write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(("loop", "place"), [("endless", (0, 12)), ("epochs", (3, 0))])
def test_a_checkpoint_of_mmengines_own_hook(loop, place, fast, tmp_path, monkeypatch):
    """It says nothing of a place: the data go on by its iteration or its epoch."""
    with pytest.raises(CrashError):
        train(tmp_path, *LOOPS[loop], CrashHook(iteration=13))
    newest = tmp_path / ("iter_12.pth" if loop == "endless" else "epoch_3.pth")
    loaded = torch.load(newest)
    for key in ("place", "saved", "order", "validated"):
        del loaded["meta"][key]
    torch.save(loaded, newest)
    began, begin = [], PlacedBatchSampler.begin

    def look(self, seed, epoch, skip, order=None):
        began.append((epoch, skip))
        begin(self, seed, epoch, skip, order)

    monkeypatch.setattr(PlacedBatchSampler, "begin", look)
    train(tmp_path, *LOOPS[loop], start=str(newest))
    assert began == [place]


def test_names_of_checkpoints_of_ones_own(tmp_path):
    """A template with a format, in a folder whose name has brackets."""
    work_dir = tmp_path / "[a]"
    work_dir.mkdir()
    (work_dir / "step_007.pth").touch()
    (work_dir / "other.pth").touch()
    hook = CheckpointHook(by_epoch=False, filename_tmpl="step_{:03d}.pth")
    runner = SimpleNamespace(work_dir=str(work_dir), hooks=[hook])
    assert resume.checkpoints(runner, None) == {str(work_dir / "step_007.pth")}


def test_a_process_that_went_on_from_nothing_says_so():
    """Of several, on a machine that does not see the work dir."""
    start = resume.Start("iter_9.pth", dict(iter=9))
    runner = SimpleNamespace(train_loop=SimpleNamespace(start=start), iter=0, work_dir="work")
    with pytest.raises(UserError, match=r"has not loaded iter_9\.pth.*work dir work has to be one"):
        CatchUpHook().before_train(runner)


@pytest.mark.parametrize("saved", [False, True])
def test_resume_where_nothing_was_saved_begins_with_the_given_weights(saved, tmp_path, monkeypatch):
    class StopError(Exception):
        pass

    def build(cfg):
        built.append((cfg.resume, cfg.load_from))
        raise StopError

    built = []
    monkeypatch.setattr(run, "build_runner", build)
    (tmp_path / "weights.pth").touch()
    cfg = Config(dict(work_dir=str(tmp_path / "work"), load_from=str(tmp_path / "weights.pth")))
    (tmp_path / "work").mkdir()
    if saved:
        (tmp_path / "work/iter_3.pth").touch()
    with pytest.raises(StopError):
        run.train(cfg, resume="auto")
    assert built == [(True, None) if saved else (False, str(tmp_path / "weights.pth"))]
