#!/usr/bin/env python
"""Watch a process over thousands of images of random sizes; the exit code is 1 if it grows.

    make soak                                # or: python dev/soak.py [--iterations 2000]

Two parts, each in a process of its own: training the detector of `make demo` by mmengine's own
loop, and inference with it, every other image by its exact inference form. 200 times in each:

- `memory`: what the system has given the process (resident set);
- `held`: that, less what malloc keeps unused. Images of random sizes leave gaps of all sizes, and
  more of them for a long time: the difference is fragmentation, and not a leak;
- `in use`: what malloc has handed out;
- `objects`: what Python's own allocator has handed out;
- `threads` and open `files`, counted in /proc.

The first half is warm-up. The second is cut into ten, and a line is fitted through the means of the
ten: samples close to each other are alike, and would make the fit look surer than it is. A figure
is flat if its slope, at the upper end of its two-sided 95 % confidence interval, is below a limit.
So noise cannot hide a leak, it can only fail the check.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from scipy import stats

from hire_mlp_mm.cli import run
from hire_mlp_mm.engine.config import read_config
from hire_mlp_mm.engine.run import build_runner
from hire_mlp_mm.errors import UserError
from hire_mlp_mm.fuse import fuse

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))
from shapes import write_shapes

mpl.use("Agg")
import matplotlib.pyplot as plt

CONFIG = "cascade_mask_rcnn_hire_nano_shapes"
PLOT = Path(__file__).resolve().parents[1] / "docs/images/soak.png"
PARTS = ("training", "inference")
SIDES = (32, 128)  # pixels: least and most of height and width, which are drawn independently
IMAGES = 40  # to draw from, each resized anew every time
SAMPLES = 200  # of a part
BLOCKS = 10  # of the second half
LEAST = 40  # iterations: two samples in each block
# Growth in 1,000 iterations that is not flat any more. To leak one image of these sizes in an
# iteration would be 80 MB, to leak a Python object 1,000 objects. Under images of random sizes,
# `in use` wavers by 1 MB (standard deviation, inference).
LIMITS = dict(memory=50.0, held=5.0, in_use=5.0, objects=500.0, threads=0.5, files=0.5)
MEMORY = ("memory", "held", "in_use")  # in MB
SAMPLE = [(name, float) for name in ("iteration", *LIMITS)]


def title(name: str) -> str:
    """Write a figure's name as people read it."""
    return name.replace("_", " ")


# Measuring ---------------------------------------------------------------------------------------


class Mallinfo2(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    NAMES = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = tuple((name, ctypes.c_size_t) for name in NAMES.split())


def malloc_figures() -> Callable[[], Mallinfo2]:
    """Return a function that tells what malloc has handed out, and what it keeps."""
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        raise UserError("the soak needs Linux with glibc 2.33 or later, whose malloc has figures")
    mallinfo2.restype = Mallinfo2
    return mallinfo2


class Meter(Hook):
    """Take samples of this process as its iterations go by."""

    priority = "LOWEST"

    def __init__(self, what: str, iterations: int) -> None:
        self.what, self.iterations = what, iterations
        self.every = max(1, iterations // SAMPLES)
        self.malloc = malloc_figures()
        self.samples = np.zeros(iterations // self.every, SAMPLE)  # now, so that it does not grow
        gc.freeze()  # the collector need not look through what is there from the start

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        self.after(runner.iter + 1)

    def after(self, iteration: int) -> None:
        """Take a sample if it is time to, and tell how it goes now and then."""
        if iteration % self.every:
            return
        memory = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        gc.collect()  # what waits for Python's collector is no leak
        malloc = self.malloc()
        in_use = malloc.uordblks + malloc.hblkhd  # in malloc's heaps, and beside them
        figures = [value / 1e6 for value in (memory, memory - malloc.fordblks, in_use)]
        counts = [len(os.listdir(f"/proc/self/{kind}")) for kind in ("task", "fd")]
        sample = (iteration, *figures, sys.getallocatedblocks(), *counts)
        self.samples[iteration // self.every - 1] = sample
        if iteration % (SAMPLES // 20 * self.every) == 0:
            told = zip(MEMORY, figures, strict=True)
            said = ", ".join(f"{title(name)} {value:.0f} MB" for name, value in told)
            print(f"{self.what}, {iteration} / {self.iterations}: {said}", flush=True)


# The parts ---------------------------------------------------------------------------------------


def config(data: Path, work_dir: Path, iterations: int) -> Config:
    """Read the detector's config, for images of random sizes and without testing after training."""
    cfg = read_config(CONFIG)
    cfg.work_dir, cfg.log_level, cfg.launcher = str(work_dir), "ERROR", "none"
    cfg.train_cfg = dict(type="IterBasedTrainLoop", max_iters=iterations)
    cfg.model.data_preprocessor.pad_size_divisor = 1  # odd sizes stay odd
    scale = [(side, side) for side in SIDES]
    resize = dict(type="RandomResize", scale=scale, keep_ratio=False)
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        kept = [one for one in loader.dataset.pipeline if one.type != "Resize"]
        loader.dataset.update(pipeline=[*kept[:-1], resize, kept[-1]], data_root=str(data))
        loader.update(batch_size=2, num_workers=1, persistent_workers=True)
    cfg.inference_dataloader = dict(
        cfg.train_dataloader, batch_size=1, dataset=cfg.test_dataloader.dataset
    )
    for split in ("val", "test"):
        cfg.update({f"{split}_{part}": None for part in ("cfg", "dataloader", "evaluator")})
    return cfg


def soak(part: str, iterations: int, data: Path, work_dir: Path) -> np.ndarray:
    """Run one of the `PARTS` in this process."""
    cfg = config(data, work_dir, iterations)
    runner = build_runner(cfg)
    meter = Meter(part, iterations)
    if part == "training":
        runner.register_hook(meter)
        runner.train()
        return meter.samples
    forms = (runner.model.eval(), fuse(runner.model))
    loader = runner.build_dataloader(cfg.inference_dataloader, seed=0)
    for i, batch in zip(range(iterations), loader, strict=False):
        with torch.no_grad():
            forms[i % 2].test_step(batch)
        meter.after(i + 1)
    return meter.samples


def soak_apart(part: str, iterations: int, out: Path) -> np.ndarray:
    """Run one part in a fresh process, which no other has left a large heap to."""
    context = multiprocessing.get_context("spawn")
    # The warnings are the hosts', about themselves.
    quiet = dict(initializer=warnings.simplefilter, initargs=("ignore",))
    with ProcessPoolExecutor(1, mp_context=context, **quiet) as pool:
        return pool.submit(soak, part, iterations, out / "data", out / part).result()


# Judging -----------------------------------------------------------------------------------------


class Trend(NamedTuple):
    """How one figure went in the second half; slopes are per 1,000 iterations."""

    first: float
    last: float
    slope: float
    error: float  # standard error of the slope
    highest: float  # upper end of the slope's confidence interval
    flat: bool


def judge(samples: np.ndarray) -> dict[str, Trend]:
    """Fit a line through each figure's means of `BLOCKS` blocks after warm-up."""
    samples = samples[len(samples) // 2 :]
    blocks = np.array_split(samples, BLOCKS)
    x = [block["iteration"].mean() / 1000 for block in blocks]
    trends = {}
    for name, limit in LIMITS.items():
        fit = stats.linregress(x, [block[name].mean() for block in blocks])
        highest = fit.slope + stats.t.ppf(0.975, BLOCKS - 2) * fit.stderr
        first, *_, last = samples[name]
        trends[name] = Trend(first, last, fit.slope, fit.stderr, highest, bool(highest < limit))
    return trends


def table(trends: Mapping[str, Mapping[str, Trend]]) -> str:
    """Write a row for each figure of each part; slopes are per 1,000 iterations."""
    rows = [
        "| part | figure | first, last of the second half | slope | at most, 95 % | limit | |",
        "|---|---|---|---|---|---|---|",
    ]
    for part, figures in trends.items():
        for name, t in figures.items():
            places = 1 if name in MEMORY else 0
            rows.append(
                f"| {part} | {title(name)} | {t.first:,.{places}f}, {t.last:,.{places}f} "
                f"| {t.slope:+.2f} ± {t.error:.2f} | {t.highest:+.2f} | {LIMITS[name]:g} "
                f"| {'flat' if t.flat else 'grows'} |"
            )
    return "\n".join(rows)


def draw(samples: Mapping[str, np.ndarray], path: Path) -> None:
    """Plot memory above, threads and files below, a column for each part."""
    fig, axes = plt.subplots(
        2, len(samples), figsize=(11, 5.2), sharex="col", sharey="row", squeeze=False,
        height_ratios=(3, 1), layout="constrained",
    )  # fmt: skip
    for (part, own), column in zip(samples.items(), axes.T, strict=True):
        x = own["iteration"]
        column[0].set_title(part)
        column[1].set_xlabel("iteration" if part == "training" else "image")
        for ax, names in zip(column, (MEMORY, ("files", "threads")), strict=True):
            ax.axvspan(0, x[len(x) // 2], color="0.93", lw=0, label="warm-up")
            for name in names:
                ax.plot(x, own[name], lw=1.2, label=title(name))
            ax.set_xlim(0, x[-1])
    for row, unit in zip(axes, ("MB", "count"), strict=True):
        row[0].set(ylabel=unit, ylim=(0, 1.15 * row[0].dataLim.ymax))
        row[-1].legend(loc="center right")
    fig.savefig(path, dpi=90, pil_kwargs=dict(optimize=True))
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=2000, help="of each part")
    parser.add_argument("--plot", type=Path, default=PLOT, help="file to write")
    args = parser.parse_args()
    path = args.plot
    if args.iterations < LEAST:
        raise UserError(f"--iterations {args.iterations}: expected {LEAST} or more")
    if path.suffix != ".png" or not path.parent.is_dir():
        raise UserError(f"--plot {path}: expected a name that ends in .png in a folder that exists")
    if path.exists() and path.resolve() != PLOT:
        raise UserError(f"--plot {path} exists; name a new file")
    malloc_figures()  # says now whether there are any
    with tempfile.TemporaryDirectory(prefix="soak.") as folder:
        write_shapes(Path(folder, "data"), train=IMAGES, val=IMAGES)
        samples = {part: soak_apart(part, args.iterations, Path(folder)) for part in PARTS}
    draw(samples, path)
    trends = {part: judge(own) for part, own in samples.items()}
    print(f"{table(trends)}\nplot: {path}")
    growing = [
        f"{title(name)} in {part}"
        for part, figures in trends.items()
        for name, one in figures.items()
        if not one.flat
    ]
    if growing:
        sys.exit(f"{Path(sys.argv[0]).name}: error: not flat: {', '.join(growing)}")


if __name__ == "__main__":
    run(main, Path(sys.argv[0]).name)
