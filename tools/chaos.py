#!/usr/bin/env python
"""Kill trainings at random moments, go on each time, and show that nothing is lost.

    python tools/chaos.py [--kills 200] [--seed 0] [--ways hire-mlp]
    python tools/chaos.py --kills 60 --ways host plain

Small detectors, segmentors and a classifier train on shapes, by epochs and by iterations, with data
loaded in the training's process and in others. Each training first runs undisturbed. Then it is
killed (SIGKILL) and told to `--resume` until it has come to its end, half of the times at any
moment and half of the times while it writes a checkpoint; then the next training's turn comes. Its
lives are those of a way to train, and the ways take turns, too: `hire-mlp train`, `mim train`, the
`tools/train.py` of the config's host, or a script with `Runner.from_cfg(harden(cfg))`. Checked are:

- after every kill, that every checkpoint is whole, down to its checksums;
- that no life goes on from more than one checkpoint's interval before the last kill;
- at the end, that weights, averaged weights, optimizer, schedules and the best checkpoint are
  those of the undisturbed run, bit for bit.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import itertools
import multiprocessing
import os
import random
import re
import runpy
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from shapes import write_shapes

from hire_mlp_mm import cli
from hire_mlp_mm.engine import harden
from hire_mlp_mm.engine.checkpoints import read_as_data
from hire_mlp_mm.engine.resume import check_undamaged, read_start
from hire_mlp_mm.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
INTERVAL = 3  # iterations from checkpoint to checkpoint
LENGTH = 18  # iterations
LIFE = 900  # seconds that one may take

# Imported once, by the process that every life is forked from: this takes longer than a life.
PRELOAD = [
    *("chaos", "hire_mlp_mm.mmcv_ops", "pycocotools.coco"),
    *("hire_mlp_mm.cli.train", "hire_mlp_mm.engine.hooks", "hire_mlp_mm.engine.data"),
    *(f"{host}.{part}" for host in ("mmdet", "mmseg") for part in ("models", "datasets", "engine")),
    *(f"{host}.{part}" for host in ("mmdet", "mmseg") for part in ("evaluation", "visualization")),
    *(f"mmpretrain.{part}" for part in ("models", "datasets", "engine", "evaluation")),
]

SMALL = """
custom_imports = dict(imports=["hire_mlp_mm", "chaos"])
dims = (8, 12, 16, 20)
model = dict(
    backbone=dict(arch=dict(_delete_=True, depths=(1, 1, 1, 1), dims=dims), drop_path_rate=0.3),
)
train_dataloader = dict(batch_size=2, num_workers={workers}, persistent_workers={workers} > 0)
val_dataloader = dict(batch_size=2)
custom_hooks = [
    *_base_.custom_hooks,
    dict(type="EMAHook", momentum=0.1),
    dict(type="ProgressHook"),
]
"""
DETECTOR = f"""
_base_ = ["{ROOT}/configs/cascade_mask_rcnn_hire_nano_shapes.py"]
{SMALL}small = dict(in_channels=16, conv_out_channels=16)
heads = [dict(head, **small, fc_out_channels=64) for head in _base_.model.roi_head.bbox_head]
model.update(
    neck=dict(in_channels=list(dims), out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=heads,
        mask_roi_extractor=dict(out_channels=16),
        mask_head=small,
    ),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomResize", scale=(128, 128), ratio_range=(0.5, 1.0), keep_ratio=True),
    dict(type="PhotoMetricDistortion"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
train_dataloader.update(
    batch_sampler=dict(type="AspectRatioBatchSampler"), dataset=dict(pipeline=train_pipeline)
)
save_best = "coco/bbox_mAP"
"""
SEGMENTOR = f"""
_base_ = ["{ROOT}/configs/upernet_hire_nano_shapes.py"]
{SMALL}
model.update(
    decode_head=dict(in_channels=list(dims), channels=16),
    auxiliary_head=dict(in_channels=dims[2], channels=16),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomCrop", crop_size=(96, 96), cat_max_ratio=0.9),
    dict(type="PhotoMetricDistortion"),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackSegInputs"),
]
model.update(data_preprocessor=dict(size=(96, 96)))
train_dataloader.update(dataset=dict(pipeline=train_pipeline))
save_best = "mIoU"
"""
BY_ITERATIONS = f"""
train_cfg = dict(max_iters={LENGTH}, val_interval={2 * INTERVAL})
param_scheduler = [
    dict(type="LinearLR", start_factor=0.05, by_epoch=False, begin=0, end=5),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=5, end={LENGTH}),
]
default_hooks = dict(
    logger=dict(interval=1),
    checkpoint=dict(by_epoch=False, interval={INTERVAL}, max_keep_ckpts=2, save_best=save_best),
)
"""
BY_EPOCHS = f"""
train_cfg = dict(_delete_=True, by_epoch=True, max_epochs={LENGTH // INTERVAL}, val_interval=2)
train_dataloader.update(sampler=dict(_delete_=True, type="DefaultSampler", shuffle=True))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.05, by_epoch=False, begin=0, end=5),
    dict(type="CosineAnnealingLR", by_epoch=True, T_max={LENGTH // INTERVAL}),
]
default_hooks = dict(
    logger=dict(interval=1, log_metric_by_epoch=True),
    checkpoint=dict(by_epoch=True, interval=1, max_keep_ckpts=2, save_best=save_best),
)
log_processor = dict(by_epoch=True)
"""
CLASSIFIER = f"""
runner_type = "hire_mlp_mm.Runner"
custom_imports = dict(imports=["hire_mlp_mm", "chaos"])
default_scope = "mmpretrain"
dims = (8, 12, 16, 20)
arch = dict(depths=(1, 1, 1, 1), dims=dims)
model = dict(
    type="ImageClassifier",
    backbone=dict(type="HireMLP", arch=arch, out_indices=(3,), drop_path_rate=0.3),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead", num_classes=2, in_channels=20, topk=(1,),
        loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1, mode="original"),
    ),
    data_preprocessor=dict(num_classes=2, mean=[127.0] * 3, std=[64.0] * 3, to_rgb=True),
    train_cfg=dict(augments=[dict(type="Mixup", alpha=0.8), dict(type="CutMix", alpha=1.0)]),
)
pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomResizedCrop", scale=64),
    dict(type="RandomErasing", mode="rand"),
    dict(type="PackInputs"),
]
train_dataloader = dict(
    batch_size=3,  # {INTERVAL} of them in the 8 images
    num_workers={{workers}},
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    # Is an image of the part to train on, or of the other one?
    dataset=dict(type="CustomDataset", data_root="{{{{$SHAPES_ROOT:}}}}images", pipeline=pipeline),
)
val_dataloader = train_dataloader
val_evaluator = dict(type="Accuracy", topk=(1,))
train_cfg = dict(by_epoch=True, max_epochs={LENGTH // INTERVAL}, val_interval=2)
val_cfg = dict()
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=1e-2))
param_scheduler = dict(type="CosineAnnealingLR", by_epoch=True, T_max={LENGTH // INTERVAL})
randomness = dict(seed=0)
default_hooks = dict(
    logger=dict(type="LoggerHook", interval=1),
    checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=2, save_best="auto"),
)
custom_hooks = [dict(type="EMAHook", momentum=0.1), dict(type="ProgressHook")]
"""
TRAININGS = {
    "detector, iterations, 2 workers": (DETECTOR + BY_ITERATIONS, 2),
    "segmentor, epochs": (SEGMENTOR + BY_EPOCHS, 0),
    "detector, epochs": (DETECTOR + BY_EPOCHS, 0),
    "segmentor, iterations, 2 workers": (SEGMENTOR + BY_ITERATIONS, 2),
    "classifier, epochs, 2 workers": (CLASSIFIER, 2),
}


@HOOKS.register_module(force=True)
class ProgressHook(Hook):
    """Writes down which iteration a life began with and how many are done, for a parent to read."""

    priority = "VERY_HIGH"

    def before_train(self, runner: Runner) -> None:
        self.write(runner, 0, runner.iter)

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        self.write(runner, 1, runner.iter + 1)

    def write(self, runner: Runner, place: int, value: int) -> None:
        file = os.open(Path(runner.work_dir, "progress"), os.O_CREAT | os.O_WRONLY)
        os.pwrite(file, struct.pack("q", value), 8 * place)
        os.close(file)


def progress(work_dir: Path) -> tuple[int, int]:
    """(iteration that the last life began with, iterations that were done in the end)."""
    path = work_dir / "progress"
    data = path.read_bytes() if path.exists() else b""
    return struct.unpack("qq", data.ljust(16, b"\0"))


def train_by_command(config: str, work_dir: str, options: list[str]) -> None:
    """Train as `hire-mlp train` does."""
    cli.main(["train", config, "--work-dir", work_dir, "--resume", *options])


def tool_of(package: str, tool: str) -> Path:
    """Find a tool that lies in an installed package, where `mim` looks for it."""
    spec = importlib.util.find_spec(package)
    assert spec is not None, package
    assert spec.origin is not None, package
    return Path(spec.origin).parent / ".mim/tools" / tool


def run_tool_of(package: str, tool: str, arguments: list[str]) -> None:
    """Run a tool of an installed package, as `mim` does, and who calls it by its path."""
    path = tool_of(package, tool)
    sys.argv = [str(path), *arguments]
    runpy.run_path(str(path), run_name="__main__")


def train_by_host(config: str, work_dir: str, options: list[str]) -> None:
    """Train as the host's own tools/train.py does."""
    host = Config.fromfile(config).default_scope
    run_tool_of(host, "train.py", [config, "--work-dir", work_dir, "--resume", *options])


def train_by_mim(config: str, work_dir: str, options: list[str]) -> None:
    """Train as `mim train hire_mlp_mm CONFIG` does."""
    arguments = [config, "--work-dir", work_dir, "--resume", *options, "--launcher", "none"]
    run_tool_of("hire_mlp_mm", "train.py", arguments)


def train_by_script(config: str, work_dir: str, options: list[str]) -> None:
    """Train as a few lines of anybody's do."""
    cfg = Config.fromfile(config)
    for option in options[1:]:  # after --cfg-options
        key, _, value = option.partition("=")
        cfg.merge_from_dict({key: ast.literal_eval(value)})
    cfg.merge_from_dict(dict(work_dir=work_dir, resume=True))
    Runner.from_cfg(harden(cfg)).train()


WAYS = {
    "hire-mlp": train_by_command,
    "mim": train_by_mim,
    "host": train_by_host,
    "plain": train_by_script,
}


def train(way: str, arguments: tuple[Any, ...], log: Path, environment: dict[str, str]) -> None:
    """Train in this process, which is a fresh one."""
    settle(environment)
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    WAYS[way](*arguments)


def preloaded() -> ForkServerContext:
    """What starts processes that have OpenMMLab imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    # The server finds modules by this alone; what it has imported, its children have.
    path = os.pathsep.join([str(ROOT / "tools"), *filter(None, sys.path)])
    # Asked for GPUs in the other way, as some modules do, torch refuses them to forked children.
    with mock.patch.dict(os.environ, PYTHONPATH=path, PYTORCH_NVML_BASED_CUDA_CHECK="1"):
        forkserver.ensure_running()
    return context


def settle(environment: dict[str, str]) -> None:
    """Begin a process of `preloaded()`: in the environment of its starter, with one thread."""
    os.environ.clear()  # the server's may be older
    os.environ.update(environment)
    torch.set_num_threads(1)


@dataclass
class Training:
    """A training of a config in a work dir, over as many lives as it takes."""

    config: Path
    work_dir: Path
    way: str = "hire-mlp"

    def start(self, *options: str) -> BaseProcess:
        """Start a life, which goes on from what is in the work dir."""
        self.work_dir.mkdir(parents=True, exist_ok=True)
        arguments = (str(self.config), str(self.work_dir), list(options))
        life = preloaded().Process(
            target=train, args=(self.way, arguments, self.log, dict(os.environ))
        )
        life.start()
        return life

    @property
    def log(self) -> Path:
        return self.work_dir / "log.txt"

    def finish(self, *options: str) -> int:
        """Run to the end; returns the exit code."""
        life = self.start(*options)
        life.join(LIFE)
        if life.is_alive():
            life.kill()
            raise RuntimeError(f"{self.work_dir}: no end after {LIFE} s, see {self.log}")
        return life.exitcode

    def checkpoints(self) -> list[Path]:
        """Those that are kept, with the best one."""
        return sorted(self.work_dir.glob("*.pth"))

    def result(self) -> dict[str, Any]:
        """What is compared: the last checkpoint, the best one's name and its weights."""
        read_as_data()
        paths = self.checkpoints()
        best = [path for path in paths if path.name.startswith("best")]
        last = max(set(paths) - set(best), key=lambda path: int(path.stem.split("_")[-1]))
        result = {path.name: torch.load(path)["state_dict"] for path in best}
        loaded = torch.load(last)
        kept = ("state_dict", "ema_state_dict", "optimizer", "param_schedulers")
        return {**result, last.name: {key: loaded[key] for key in kept if key in loaded}}


def difference(one: Any, other: Any, where: str = "") -> str | None:
    """Where two nested results first differ, in a bit; None if nowhere."""
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and torch.equal(one, other)
        return None if same else where
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return f"{where}: {sorted(map(str, one.keys() ^ other.keys()))}"
        found = (difference(one[key], other[key], f"{where}/{key}") for key in one)
        return next(filter(None, found), None)
    if isinstance(one, (list, tuple)):
        return difference(dict(enumerate(one)), dict(enumerate(other)), where)
    return None if one == other else where


def kill_at(life: BaseProcess, seconds: float) -> None:
    """Kill a life some time after its start."""
    life.join(seconds)
    life.kill()


def kill_writing(life: BaseProcess, work_dir: Path, files: int, part: float) -> None:
    """Kill a life while it writes a checkpoint.

    Args:
        life: a training.
        work_dir: where it writes.
        files: which checkpoint it is, of those that this life writes.
        part: of the file that is written by then; above 1, when the file has just got its name.
    """
    seen, writing = 0, False
    deadline = time.monotonic() + LIFE
    while life.is_alive():
        if time.monotonic() > deadline:
            life.kill()
            raise RuntimeError(f"{work_dir}: no end after {LIFE} s")
        parts = list(work_dir.glob("*.pth.part"))
        seen += bool(parts) and not writing
        writing = bool(parts)
        if writing and seen == files:
            whole = max((path.stat().st_size for path in work_dir.glob("[ei]*.pth")), default=0)
            while size(parts[0]) < part * whole and life.is_alive():
                pass
            break
        time.sleep(0.0005)
    life.kill()


def size(path: Path) -> float:
    """Bytes of a file; no end of them if it is gone."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return float("inf")


class LostError(Exception):
    """What must not be."""


def check(training: Training, done: int) -> None:
    """Look for damage after a kill.

    Args:
        training: whose life was ended.
        done: iterations that were done when that life was started.

    Raises:
        LostError: a checkpoint is damaged, or the life went on from too far back.
    """
    for path in training.checkpoints():
        if not path.name.startswith("best"):  # which holds weights alone
            read_start(str(path))
        check_undamaged(str(path))
    path = training.work_dir / "progress"
    if not path.exists():  # killed before it went on
        path.write_bytes(struct.pack("qq", done, done))
    began, now = progress(training.work_dir)
    if began < done - INTERVAL:
        raise LostError(f"{training.work_dir}: went on from {began} after {done} were done")
    if now == 0:  # killed before the first iteration was through
        path.write_bytes(struct.pack("qq", began, done))


def kill_until_done(
    training: Training, wanted: dict, length: float, rng: random.Random, count: Counter, limit: int
) -> None:
    """Kill a training and have it go on, until it comes to its end or was killed often enough.

    Args:
        training: in an empty work dir.
        wanted: its result when it is left alone.
        length: seconds that it then takes.
        rng: chooses the moments.
        count: of kills, which is added to.
        limit: kills in all.

    Raises:
        LostError: something is lost.
    """
    while count["kills"] < limit:
        for rest in training.work_dir.glob("*.pth.part"):  # so that each one seen is new
            rest.unlink()
        done = progress(training.work_dir)[1]
        (training.work_dir / "progress").unlink(missing_ok=True)
        life = training.start()
        aimed = rng.random() < 0.5
        moment = rng.uniform(0, length), rng.randint(1, 3), rng.uniform(0, 1.3)
        if aimed:
            kill_writing(life, training.work_dir, *moment[1:])
        else:
            kill_at(life, moment[0])
        life.join()
        if life.exitcode == -signal.SIGKILL:
            count["kills"] += 1
            count["aimed at a checkpoint's writing"] += aimed
            count["left a part of a checkpoint"] += any(training.work_dir.glob("*.pth.part"))
            count["before the first checkpoint"] += not training.checkpoints()
            check(training, done)
        elif life.exitcode == 0:
            check(training, done)
            break
        else:
            raise LostError(f"{training.work_dir}: exit code {life.exitcode}, see {training.log}")
    else:
        if training.finish():
            raise LostError(f"{training.work_dir}: did not end well, see {training.log}")
    where = difference(wanted, training.result())
    if where:
        raise LostError(f"{training.work_dir}: differs from the undisturbed run in {where}")
    count["trainings compared with the undisturbed one, equal"] += 1


def write_config(name: str, folder: Path) -> Path:
    """Write one of `TRAININGS` into a folder, as a config."""
    path = folder / f"{'_'.join(re.findall(r'[a-z0-9]+', name))}.py"
    text, workers = TRAININGS[name]
    path.write_text(text.replace("{workers}", str(workers)))
    return path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Kill trainings, and show that nothing is lost.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="chooses the moments")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=["hire-mlp"])
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    rng = random.Random(args.seed)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    by = " and ".join(args.ways)
    print(f"seed {args.seed}, {args.kills} kills, by {by}, in {folder}", flush=True)
    write_shapes(folder / "shapes", train=2 * INTERVAL, val=2)
    os.environ["SHAPES_ROOT"] = f"{folder}/shapes/"
    count: Counter = Counter()
    undisturbed: dict[str, tuple[dict, float]] = {}
    ways = itertools.cycle(args.ways)
    for name in itertools.cycle(TRAININGS):
        config = write_config(name, folder)
        if name not in undisturbed:
            training = Training(config, folder / f"{config.stem}-undisturbed")
            training.finish()  # the first life of all waits for the imports
            shutil.rmtree(training.work_dir)
            start = time.monotonic()
            if training.finish():
                raise LostError(f"{name}: cannot be trained, see {training.log}")
            undisturbed[name] = training.result(), time.monotonic() - start
            print(f"{name}: {undisturbed[name][1]:.1f} s undisturbed", flush=True)
        training = Training(config, folder / config.stem, next(ways))
        kill_until_done(training, *undisturbed[name], rng, count, args.kills)
        print(f"{count['kills']} kills; {name}, by {training.way}: equal", flush=True)
        shutil.rmtree(training.work_dir)
        if count["kills"] >= args.kills and len(undisturbed) == len(TRAININGS):
            break
    shutil.rmtree(folder)
    for what, number in count.items():
        print(f"{number:5} {what}")
    print("nothing was lost")


if __name__ == "__main__":
    try:
        main()
    except (LostError, UserError) as error:
        sys.exit(f"chaos.py: lost: {error}")
