#!/usr/bin/env python
"""Kill trainings at random moments, go on each time, and show that nothing is lost.

    python dev/chaos.py [--kills 200] [--seed 0] [--ways hire-mlp]
    python dev/chaos.py --kills 60 --ways host plain

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
import json
import multiprocessing
import os
import random
import re
import runpy
import shutil
import signal
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
from mmengine.runner import Runner

from hire_mlp_mm import cli
from hire_mlp_mm.engine import harden
from hire_mlp_mm.engine.checkpoints import read_as_data
from hire_mlp_mm.engine.resume import check_undamaged, read_start
from hire_mlp_mm.errors import UserError

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))
from shapes import write_shapes

ROOT = Path(__file__).resolve().parents[1]
INTERVAL = 3  # iterations from checkpoint to checkpoint
LENGTH = 18  # iterations
LIFE = 900  # seconds that one may take
WAYS = ("hire-mlp", "mim", "host", "plain")

# Imported once, by the process that every life is forked from: this takes longer than a life.
PRELOAD = [
    *("chaos", "hire_mlp_mm.mmcv_ops", "pycocotools.coco"),
    *("hire_mlp_mm.cli.train", "hire_mlp_mm.engine.hooks", "hire_mlp_mm.engine.guarded"),
    *(
        f"{host}.{part}"
        for host in ("mmdet", "mmseg", "mmpretrain")
        for part in ("models", "datasets", "engine", "evaluation", "visualization")
    ),
]

SMALL = """
dims = (8, 12, 16, 20)
model = dict(
    backbone=dict(arch=dict(_delete_=True, depths=(1, 1, 1, 1), dims=dims), drop_path_rate=0.3),
)
train_dataloader = dict(batch_size=2, num_workers={workers}, persistent_workers={workers} > 0)
custom_hooks = [*_base_.custom_hooks, dict(type="EMAHook", momentum=0.1)]
"""
DETECTOR = f"""
_base_ = ["{ROOT}/configs/cascade_mask_rcnn_hire_nano_shapes.py"]
{SMALL}
heads = [dict(head, fc_out_channels=16) for head in _base_.model.roi_head.bbox_head]
model.update(neck=dict(in_channels=list(dims)), roi_head=dict(bbox_head=heads))
train_pipeline = [
    *_base_.train_pipeline[:2],
    dict(type="RandomResize", scale=(128, 128), ratio_range=(0.5, 1.0), keep_ratio=True),
    dict(type="PhotoMetricDistortion"),
    *_base_.train_pipeline[2:],
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
    data_preprocessor=dict(size=(96, 96)),
    decode_head=dict(in_channels=list(dims), channels=16),
    auxiliary_head=dict(in_channels=dims[2], channels=16),
)
train_pipeline = [
    *_base_.train_pipeline[:2],
    dict(type="RandomCrop", crop_size=(96, 96), cat_max_ratio=0.9),
    dict(type="PhotoMetricDistortion"),
    *_base_.train_pipeline[2:],
]
train_dataloader.update(dataset=dict(pipeline=train_pipeline))
save_best = "mIoU"
"""
CLASSIFIER = f"""
_base_ = ["{ROOT}/configs/hire_t_imagenet.py"]
{SMALL}
model.update(
    head=dict(num_classes=2, in_channels=dims[3]), data_preprocessor=dict(num_classes=2)
)
pipeline = [dict(step) for step in _base_.train_pipeline]
pipeline[1].update(scale=64)
# Is an image of the part to train on, or of the other one?
images = dict(
    _delete_=True, type="CustomDataset", data_root="{{{{$SHAPES_ROOT:}}}}images", pipeline=pipeline
)
# {INTERVAL} batches in the 8 images
train_dataloader.update(batch_size=3, drop_last=False, dataset=images)
val_dataloader = dict(batch_size=3, num_workers=0, persistent_workers=False, dataset=images)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
save_best = "auto"
"""
SCHEDULE = """
param_scheduler = [
    dict(type="LinearLR", start_factor=0.05, by_epoch=False, begin=0, end=5),
    dict(type="CosineAnnealingLR", by_epoch={by_epoch}, begin={begin}, end={end}),
]
default_hooks = dict(
    logger=dict(interval=1, log_metric_by_epoch={by_epoch}),
    checkpoint=dict(
        by_epoch={by_epoch}, interval={interval}, max_keep_ckpts=2, save_best=save_best
    ),
)
log_processor = dict(by_epoch={by_epoch})
"""
BY_ITERATIONS = f"""
train_cfg = dict(max_iters={LENGTH}, val_interval={2 * INTERVAL})
{SCHEDULE.format(by_epoch=False, begin=5, end=LENGTH, interval=INTERVAL)}
"""
BY_EPOCHS = f"""
train_cfg = dict(_delete_=True, by_epoch=True, max_epochs={LENGTH // INTERVAL}, val_interval=2)
train_dataloader.update(sampler=dict(_delete_=True, type="DefaultSampler", shuffle=True))
{SCHEDULE.format(by_epoch=True, begin=0, end=LENGTH // INTERVAL, interval=1)}
"""
TRAININGS = {
    "detector, iterations, 2 workers": (DETECTOR + BY_ITERATIONS, 2),
    "segmentor, epochs": (SEGMENTOR + BY_EPOCHS, 0),
    "detector, epochs": (DETECTOR + BY_EPOCHS, 0),
    "segmentor, iterations, 2 workers": (SEGMENTOR + BY_ITERATIONS, 2),
    "classifier, epochs, 2 workers": (CLASSIFIER + BY_EPOCHS, 2),
}


def write_config(name: str, folder: Path) -> Path:
    """Write one of `TRAININGS` into a folder, as a config."""
    path = folder / f"{'_'.join(re.findall(r'[a-z0-9]+', name))}.py"
    text, workers = TRAININGS[name]
    path.write_text(text.replace("{workers}", str(workers)))
    return path


# A life -----------------------------------------------------------------------------------------


def preloaded() -> ForkServerContext:
    """Return the context whose processes have OpenMMLab imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    # The server finds modules by this alone; what it has imported, its children have.
    path = os.pathsep.join(filter(None, sys.path))
    # Asked for GPUs in the other way, as some modules do, torch refuses them to forked children.
    with mock.patch.dict(os.environ, PYTHONPATH=path, PYTORCH_NVML_BASED_CUDA_CHECK="1"):
        forkserver.ensure_running()
    return context


def settle(environment: dict[str, str]) -> None:
    """Begin a process of `preloaded()`: in the environment of its starter, with one thread."""
    os.environ.clear()  # the server's may be older
    os.environ.update(environment)
    torch.set_num_threads(1)


def tool_of(package: str, tool: str) -> Path:
    """Find a tool that lies in an installed package, where `mim` looks for it."""
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent / ".mim/tools" / tool


def train(way: str, config: str, work_dir: str, options: list[str], env: dict[str, str]) -> None:
    """Train in this process, which is a fresh one, in one of the `WAYS`."""
    settle(env)
    signal.alarm(LIFE)
    with open(Path(work_dir, "log.txt"), "ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    arguments = [config, "--work-dir", work_dir, "--resume", *options]
    if way == "hire-mlp":
        cli.main(["train", *arguments])
    elif way == "plain":
        cfg = Config.fromfile(config)
        pairs = (option.split("=") for option in options[1:])  # after --cfg-options
        changes = {key: ast.literal_eval(value) for key, value in pairs}
        cfg.merge_from_dict(dict(changes, work_dir=work_dir, resume=True))
        Runner.from_cfg(harden(cfg)).train()
    else:
        host = Config.fromfile(config).default_scope
        tool = str(tool_of("hire_mlp_mm" if way == "mim" else host, "train.py"))
        sys.argv = [tool, *arguments, "--launcher", "none"]  # as mim calls it
        runpy.run_path(tool, run_name="__main__")


@dataclass
class Training:
    """A training of a config in a work dir, over as many lives as it takes."""

    config: Path
    work_dir: Path
    way: str = "hire-mlp"

    @property
    def log(self) -> Path:
        return self.work_dir / "log.txt"

    def start(self, *options: str) -> BaseProcess:
        """Start a life, which goes on from what is in the work dir."""
        self.work_dir.mkdir(parents=True, exist_ok=True)
        arguments = (self.way, str(self.config), str(self.work_dir), options, dict(os.environ))
        life = preloaded().Process(target=train, args=arguments)
        life.start()
        return life

    def finish(self, *options: str) -> int:
        """Run to the end; returns the exit code."""
        life = self.start(*options)
        life.join()
        return life.exitcode

    def iterations(self) -> list[int]:
        """List the iterations in the logs that are there."""
        logs = sorted(self.work_dir.glob("*/vis_data/scalars.json"))
        records = (json.loads(line) for log in logs for line in log.read_text().splitlines())
        return [record["step"] for record in records if "loss" in record]

    def checkpoints(self) -> list[Path]:
        """List the checkpoints that are kept, with the best one."""
        return sorted(self.work_dir.glob("*.pth"))

    def result(self) -> dict[str, Any]:
        """Read what is compared: the last checkpoint, the best one's name and its weights."""
        read_as_data()
        paths = self.checkpoints()
        best = [path for path in paths if path.name.startswith("best")]
        last = max(set(paths) - set(best), key=lambda path: int(path.stem.split("_")[-1]))
        result = {path.name: torch.load(path)["state_dict"] for path in best}
        loaded = torch.load(last)
        kept = ("state_dict", "ema_state_dict", "optimizer", "param_schedulers")
        return {**result, last.name: {key: loaded[key] for key in kept if key in loaded}}


# Its end ----------------------------------------------------------------------------------------


def difference(one: Any, other: Any, where: str = "") -> str | None:
    """Name the place where two nested results first differ, in a bit; None if nowhere."""
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


def kill_writing(life: BaseProcess, work_dir: Path, files: int, part: float) -> None:
    """Kill a life when it has written `part` of a checkpoint, the `files`-th that it writes.

    A part above 1 is when the file has just got its name.
    """
    seen, writing = 0, False
    while life.is_alive():
        parts = list(work_dir.glob("*.pth.part"))
        seen += bool(parts) and not writing
        writing = bool(parts)
        if writing and seen == files:
            whole = max((path.stat().st_size for path in work_dir.glob("[ei]*.pth")), default=0)
            while life.is_alive() and size(parts[0]) < part * whole:
                pass
            break
        time.sleep(0.0005)
    life.kill()


def size(path: Path) -> float:
    """Tell the bytes of a file; no end of them if it is gone."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return float("inf")


class LostError(Exception):
    """Something was lost."""


def check(training: Training, done: int) -> None:
    """Look for damage after a life that was started when `done` iterations were done."""
    for path in training.checkpoints():
        if not path.name.startswith("best"):  # which holds weights alone
            read_start(str(path))
        check_undamaged(str(path))
    for first in training.iterations()[:1]:
        if first - 1 < done - INTERVAL:
            raise LostError(f"{training.work_dir}: went on from {first - 1} after {done} were done")


def kill_until_done(
    training: Training, length: float, rng: random.Random, count: Counter, kills: int
) -> None:
    """Kill a training, `length` seconds long, and have it go on, until it comes to its end.

    After so many `kills` in all, which `count` holds, it is left alone.
    """
    done, code = 0, None
    while code != 0:
        for part in training.work_dir.glob("*.pth.part"):  # so that each one seen is new
            part.unlink()
        for logs in training.work_dir.glob("*/vis_data"):  # so that those seen are this life's
            shutil.rmtree(logs)
        life = training.start()
        aimed = rng.random() < 0.5
        moment, files, part = rng.uniform(0, length), rng.randint(1, 3), rng.uniform(0, 1.3)
        if count["kills"] < kills and aimed:
            kill_writing(life, training.work_dir, files, part)
        elif count["kills"] < kills:
            life.join(moment)
            life.kill()
        life.join()
        code = life.exitcode
        if code not in (0, -signal.SIGKILL):
            raise LostError(f"{training.work_dir}: exit code {code}, see {training.log}")
        check(training, done)
        done = max(training.iterations(), default=done)
        if code:
            count["kills"] += 1
            count["aimed at a checkpoint's writing"] += aimed
            count["left a part of a checkpoint"] += any(training.work_dir.glob("*.pth.part"))
            count["before the first checkpoint"] += not training.checkpoints()


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill trainings, and show that nothing is lost.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="chooses the moments")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["hire-mlp"])
    args = parser.parse_args()
    rng, count = random.Random(args.seed), Counter()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    by = " and ".join(args.ways)
    print(f"seed {args.seed}, {args.kills} kills, by {by}, in {folder}", flush=True)
    write_shapes(folder / "shapes", train=2 * INTERVAL, val=2)
    os.environ["SHAPES_ROOT"] = f"{folder}/shapes/"
    waiting = preloaded().Process(target=int)  # for the imports
    waiting.start()
    waiting.join()
    undisturbed: dict[str, tuple[dict, float]] = {}
    for name, way in zip(itertools.cycle(TRAININGS), itertools.cycle(args.ways)):
        config = write_config(name, folder)
        if name not in undisturbed:
            training = Training(config, folder / f"{config.stem}-undisturbed")
            start = time.monotonic()
            if training.finish():
                raise LostError(f"{name}: cannot be trained, see {training.log}")
            undisturbed[name] = training.result(), time.monotonic() - start
            print(f"{name}: {undisturbed[name][1]:.1f} s undisturbed", flush=True)
        wanted, length = undisturbed[name]
        training = Training(config, folder / config.stem, way)
        kill_until_done(training, length, rng, count, args.kills)
        where = difference(wanted, training.result())
        if where:
            raise LostError(f"{training.work_dir}: differs from the undisturbed run in {where}")
        count["trainings compared with the undisturbed one, equal"] += 1
        print(f"{count['kills']} kills; {name}, by {way}: equal", flush=True)
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
