#!/usr/bin/env python
"""Do the main job on embedded data, from nothing to pictures, in minutes and without a GPU.

    make demo                                # or: python tools/demo.py [--out DIR] [--seed 0]

Draws a data set of shapes, trains and tests a Cascade Mask R-CNN and a small UperNet on HireMLP
with `tools/train.py` and `tools/test.py`, and shows the figures, predictions and curves. Fails if
a figure is below its bar.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from mmengine.config import Config
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from rich.console import Console
from rich.table import Table
from shapes import CLASSES, write_shapes

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Patch, Rectangle

ROOT = Path(__file__).resolve().parents[1]
OUT = Path("work_dirs/demo")
MARK = "made_by_demo.txt"  # its presence says that the names below are ours to replace
OURS = ("data", "detection", "segmentation", "predictions.png", "curves.png", "results.json")
LEAST_SCORE = 0.7  # of the predictions in the picture
COLOURS = ("tab:red", "tab:blue", "tab:green")  # of the classes, as in the configs
QUICK = dict(train=16, val=4, iters=4)  # images and iterations with --quick, for the tests

console = Console(highlight=False, soft_wrap=True)


class DemoError(Exception):
    """The demo cannot go on; the message is one line for people."""


class Metric(NamedTuple):
    """A figure that the tools write under `key`, out of `whole`, and what it should reach."""

    title: str
    key: str
    bar: float
    whole: float = 1.0

    def read(self, record: dict[str, float]) -> float:
        """Return the figure as a fraction. A model that finds nothing at all gets no record: 0."""
        return record.get(self.key, 0.0) / self.whole


class Task(NamedTuple):
    """A model to train and test; `name` is its folder, the first metrics are drawn over time."""

    name: str
    title: str
    config: Path
    metrics: tuple[Metric, ...]


DETECTION = Task(
    "detection",
    "Cascade Mask R-CNN",
    ROOT / "configs/cascade_mask_rcnn_hire_nano_shapes.py",
    (
        Metric("box AP", "coco/bbox_mAP", 0.60),
        Metric("mask AP", "coco/segm_mAP", 0.60),
        Metric("box AP50", "coco/bbox_mAP_50", 0.85),
        Metric("mask AP50", "coco/segm_mAP_50", 0.85),
    ),
)
SEGMENTATION = Task(
    "segmentation",
    "UperNet",
    ROOT / "configs/upernet_hire_nano_shapes.py",
    (Metric("mIoU", "mIoU", 0.70, whole=100),),
)
TASKS = (DETECTION, SEGMENTATION)


# The run ----------------------------------------------------------------------------------------


def make_room(out: Path) -> None:
    """Make `out`, or remove what an earlier demo left there, and nothing else."""
    mark = out / MARK
    present = [path for name in OURS if os.path.lexists(path := out / name)]
    if present and not mark.exists():
        raise DemoError(
            f"{present[0]} is there and was not made by the demo; name another folder with --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    mark.write_text(f"The demo made, and replaces when it runs again: {', '.join(OURS)}\n")
    for path in present:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def run_tool(
    what: str, command: list[str], data: Path, log: Path, work_dir: Path
) -> Iterator[dict]:
    """Run one of the tools, its output in `log`, and yield what it records as it goes."""
    env = dict(os.environ, SHAPES_ROOT=f"{data}/", PYTHONUNBUFFERED="1")
    # Threads that wait by spinning slow each other down tenfold where others use the cores too;
    # a short spin keeps most of its gain.
    env.setdefault("GOMP_SPINCOUNT", "5000")
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=file,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        seen, running = 0, True
        while running:
            running = process.poll() is None
            records = read_records(work_dir)
            yield from records[seen:]
            seen = len(records)
            time.sleep(0.5 if running else 0)
    finally:
        process.terminate()  # if we were interrupted: leave nobody working behind us
        process.wait()
    if process.returncode:
        said = log.read_text(errors="replace").strip() or "it said nothing"
        raise DemoError(f"{what} failed ({said.splitlines()[-1].strip()}); the whole log is {log}")


def read_records(work_dir: Path) -> list[dict]:
    """Read losses and metrics that the newest run in `work_dir` has recorded, oldest first."""
    for path in sorted(work_dir.glob("*/vis_data/scalars.json"))[-1:]:
        lines = path.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]
    return []


def train(task: Task, out: Path, seed: int, iters: int | None) -> list[dict]:
    """Train a model and tell how it goes; return the records of losses and metrics."""
    options = [f"randomness.seed={seed}"]
    if iters:
        options += [f"train_cfg.max_iters={iters}", f"train_cfg.val_interval={iters}"]
        options += [f"default_hooks.checkpoint.interval={iters}", "default_hooks.logger.interval=1"]
    total = iters or Config.fromfile(task.config, import_custom_modules=False).train_cfg.max_iters
    folder, log = out / task.name / "train", out / task.name / "train.log"
    command = ["tools/train.py", str(task.config), "--work-dir", str(folder)]
    command += ["--cfg-options", *options]
    records, shown, start = [], 0.0, None
    console.print(f"  training, {total} iterations; log: {log}")
    for record in run_tool(f"training {task.title}", command, out / "data", log, folder):
        records.append(record)
        step, now = record["step"], time.time()
        if "loss" not in record:
            values = ", ".join(f"{m.title} {m.read(record):.2f}" for m in task.metrics[:2])
            console.print(f"  {step:4} / {total}   on held-out images: [bold]{values}")
            start = None  # the pause is no measure of the training's speed
            continue
        if start and (now - shown > 5 or step == total):
            left = (total - step) * (now - start[0]) / (step - start[1])
            console.print(f"  {step:4} / {total}   loss {record['loss']:.2f}   {left:.0f} s to go")
            shown = now
        start = start or (now, step)
    return records


def test(task: Task, out: Path) -> tuple[dict[str, float], list[dict]]:
    """Test a trained model; return its metrics by their titles, and a prediction per image."""
    folder, log = out / task.name / "test", out / task.name / "test.log"
    checkpoint = (out / task.name / "train/last_checkpoint").read_text().strip()
    predictions = out / task.name / "predictions.pkl"
    command = ["tools/test.py", str(task.config), checkpoint, "--work-dir", str(folder)]
    command += ["--out", str(predictions)]
    console.print(f"  testing the last checkpoint; log: {log}")
    for _ in run_tool(f"testing {task.title}", command, out / "data", log, folder):
        pass
    (path,) = folder.glob("*/*.json")
    record = json.loads(path.read_text())
    values = {metric.title: round(metric.read(record), 4) for metric in task.metrics}
    console.print("  " + ", ".join(f"[bold]{key} {value:.3f}[/]" for key, value in values.items()))
    return values, pickle.loads(predictions.read_bytes())  # written by our own child


# The pictures -----------------------------------------------------------------------------------


def outline(ax: plt.Axes, mask: np.ndarray, label: int) -> None:
    """Fill a (H, W) mask with its class's colour, the image shining through, and draw its edge."""
    layer = np.zeros((*mask.shape, 4))
    layer[mask] = mpl.colors.to_rgba(COLOURS[label], 0.45)
    ax.imshow(layer, interpolation="nearest")
    padded = np.pad(mask, 1)  # an edge along the image's border needs something outside
    y, x = (np.arange(-1, size + 1) for size in mask.shape)
    ax.contour(x, y, padded, levels=[0.5], colors=[COLOURS[label]], linewidths=1.2)


def draw_instance(ax: plt.Axes, rle: dict, label: int, box: np.ndarray, text: str) -> None:
    """Draw one object: a mask of COCO's, its class, and its box (x, y, width, height) in pixels."""
    outline(ax, coco_mask.decode(rle).astype(bool), label)
    (x, y, width, height), colour = box, COLOURS[label]
    ax.add_patch(Rectangle((x - 0.5, y - 0.5), width, height, fill=False, ec=colour, lw=0.8))
    place = min(max(x, 0), rle["size"][1] - 44), max(y, 9)
    frame = dict(facecolor=colour, edgecolor="none", pad=0.8, alpha=0.9)
    ax.text(*place, f"{CLASSES[label]}{text}", color="white", fontsize=7, va="bottom", bbox=frame)


def draw_row(row: list[plt.Axes], data: Path, truth: COCO, instance: dict, semantic: dict) -> None:
    """Draw one image: by itself, then truth and prediction of both models."""
    path = Path(instance["img_path"])
    image = plt.imread(path)
    row[0].imshow(image)
    for ax in row[1:]:  # pale grey, so that the only colours are those of the classes
        ax.imshow(image.mean(axis=2), cmap="gray", vmin=-220, vmax=300)
    for record in truth.imgToAnns[instance["img_id"]]:
        label = record["category_id"] - 1
        draw_instance(row[1], record["segmentation"], label, record["bbox"], "")
    found = instance["pred_instances"]
    for i in np.flatnonzero(found["scores"] >= LEAST_SCORE):
        box = found["bboxes"][i].numpy()
        box[2:] -= box[:2]
        text = f" {found['scores'][i]:.2f}"
        draw_instance(row[2], found["masks"][i], int(found["labels"][i]), box, text)
    true_classes = np.asarray(Image.open(data / "annotations/validation" / f"{path.stem}.png"))
    maps = (true_classes, semantic["pred_sem_seg"]["data"][0].numpy())
    for ax, classes in zip(row[3:], maps, strict=True):
        for label in range(len(CLASSES)):
            if (classes == label + 1).any():
                outline(ax, classes == label + 1, label)
    for ax in row:
        ax.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
        ax.set_axis_off()


def draw_predictions(out: Path, instances: list[dict], semantics: list[dict]) -> Path:
    """Draw the first held-out images: truth and prediction of both models, side by side."""
    with contextlib.redirect_stdout(None):  # it talks of its index
        truth = COCO(out / "data/annotations/instances_validation.json")
    rows = min(4, len(instances))
    fig, axes = plt.subplots(rows, 5, figsize=(11, 2.25 * rows + 0.8), squeeze=False)
    titles = ("image", "instances: truth", f"instances: score >= {LEAST_SCORE}")
    for ax, title in zip(axes[0], (*titles, "classes: truth", "classes: prediction"), strict=True):
        ax.set_title(title, fontsize=10)
    for row, instance, semantic in zip(axes, instances, semantics, strict=False):
        draw_row(row, out / "data", truth, instance, semantic)
    fig.suptitle(f"{DETECTION.title} and {SEGMENTATION.title} on HireMLP: held-out images")
    handles = [Patch(color=c, label=n) for c, n in zip(COLOURS, CLASSES, strict=True)]
    fig.legend(handles=handles, loc="lower center", ncols=len(CLASSES), frameon=False)
    fig.tight_layout(rect=(0, 0.03, 1, 1), h_pad=0.3, w_pad=0.3)
    return save(fig, out / "predictions.png")


def draw_curves(out: Path, records: dict[Task, list[dict]]) -> Path:
    """Plot training loss and metrics of held-out images over the iterations, for each model."""
    fig, axes = plt.subplots(1, len(records), figsize=(11, 3.8))
    for ax, (task, history) in zip(axes, records.items(), strict=True):
        losses = [(r["step"], r["loss"]) for r in history if "loss" in r]
        tests = [r for r in history if "loss" not in r]
        lines = ax.plot(*zip(*losses, strict=True), color="0.55", label="loss")
        ax.set(title=f"{task.title} on HireMLP", xlabel="iteration", ylabel="training loss")
        right = ax.twinx()
        for metric, colour in zip(task.metrics[:2], ("tab:blue", "tab:orange"), strict=False):
            values = [metric.read(r) for r in tests]
            steps = [r["step"] for r in tests]
            lines += right.plot(steps, values, "o-", color=colour, label=metric.title)
        right.set(
            ylim=(0, 1), ylabel=" and ".join(m.title for m in task.metrics[:2]) + ", held out"
        )
        ax.set(xlim=(0, None), ylim=(0, None))
        place = dict(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=len(lines))
        ax.legend(handles=lines, frameon=False, **place)
    fig.tight_layout()
    return save(fig, out / "curves.png")


def save(fig: plt.Figure, path: Path) -> Path:
    """Write a figure in 24 shades per colour, which makes it a third as big and is hardly seen."""
    fig.savefig(path)
    plt.close(fig)
    shades = [round(round(value * 23 / 255) * 255 / 23) for value in range(256)]
    Image.open(path).convert("RGB").point(3 * shades).save(path, optimize=True)
    return path


# The command line -------------------------------------------------------------------------------


def demo(out: Path, seed: int, quick: bool) -> None:
    """Run all of it; raise DemoError if a step failed, or a figure is below its bar."""
    start = time.time()
    make_room(out)
    count = dict(train=QUICK["train"], val=QUICK["val"]) if quick else {}
    console.rule("data", align="left")
    write_shapes(out / "data", seed=seed, **count)
    console.print(f"  circles, squares and triangles in {out / 'data'}")
    records, values, predictions = {}, {}, []
    for task in TASKS:
        console.rule(f"{task.title} on HireMLP", align="left")
        records[task] = train(task, out, seed, QUICK["iters"] if quick else None)
        reached, predicted = test(task, out)
        values.update(reached)
        predictions.append(predicted)
    pictures = [draw_predictions(out, *predictions), draw_curves(out, records)]
    minutes = (time.time() - start) / 60
    results = dict(seed=seed, minutes=round(minutes, 2), **values)
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    missed = []
    table = Table("model on HireMLP", "held-out images", "reached", "at least")
    for task, metric in ((one, metric) for one in TASKS for metric in one.metrics):
        value = values[metric.title]
        if value < metric.bar:
            missed.append(f"{metric.title} < {metric.bar:.2f}")
        colour = "green" if value >= metric.bar else "red"
        table.add_row(task.title, metric.title, f"[{colour}]{value:.3f}", f"{metric.bar:.2f}")
    console.print(table)
    console.print(f"{minutes:.1f} minutes. Pictures:", *pictures, sep="\n")
    if missed and not quick:
        raise DemoError(f"below the bar: {', '.join(missed)}; logs and checkpoints are in {out}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Train, test and draw on embedded data.")
    parser.add_argument("--out", type=Path, default=OUT, help="folder (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of data and training (default: 0)")
    parser.add_argument("--quick", action="store_true", help="a few iterations, no bars")
    args = parser.parse_args()
    # Being terminated is like Ctrl-C: it says so, and ends the tool that runs.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        demo(Path(os.path.abspath(args.out)), args.seed, args.quick)
    except (DemoError, OSError) as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; the next run starts over", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
