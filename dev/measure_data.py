#!/usr/bin/env python
"""Measure how fast a config's training data come: what each step takes, and images per second.

    COCO_ROOT=FOLDER python dev/measure_data.py mask_rcnn_hire_s_1x_coco --workers 0 1 2

The first table has the milliseconds of a core that each step of the pipeline takes for an image,
which a busy machine changes little. The second, for a quiet machine, has the images per second that
the data loader gives with so many workers, and the seconds until the first batch of an epoch, with
workers that stay and with new ones. The files are read once before, so that they come from memory.
Set num_workers so that the images per second are more than the GPU trains on.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from statistics import median
from typing import Any

import cv2
import torch
from mmengine.registry import DefaultScope
from mmengine.runner import Runner

from hire_mlp_mm.bench.report import markdown
from hire_mlp_mm.cli.options import add_cfg_options
from hire_mlp_mm.engine import harden, load_config
from hire_mlp_mm.engine.quiet import quiet
from hire_mlp_mm.engine.randomness import seed_everything

EPOCHS = 3  # of which the first begins with what comes once


def step_times(dataset: Any, images: int) -> dict[str, float]:
    """Return milliseconds of a core for each step of a pipeline, medians over images."""
    taken: dict[str, list[float]] = defaultdict(list)
    for i in range(images):
        seed_everything(i)
        results = dataset.get_data_info(i % len(dataset))
        for step in dataset.pipeline.transforms:
            start = time.process_time()
            results = step(results)
            taken[type(step).__name__].append(1e3 * (time.process_time() - start))
    return {name: median(times) for name, times in taken.items()}


def epochs(loader: Any, images: int) -> Iterator[tuple[float, float]]:
    """Yield seconds to the first batch, and images per second after it, of several epochs."""
    for _ in range(EPOCHS):
        start, first, seen = time.perf_counter(), 0.0, 0
        for batch in loader:
            if not first:
                first = time.perf_counter()
                continue
            seen += len(batch["inputs"])
            if seen >= images:
                break
        yield first - start, seen / (time.perf_counter() - first)


def loader_row(cfg: Any, workers: int, images: int) -> list[str]:
    """Measure a data loader with so many workers that stay, and with new ones in each epoch."""
    starts, rates = [], []
    for stays in (True, False) if workers else (False,):
        options = dict(num_workers=workers, persistent_workers=stays)
        with quiet():
            loader = Runner.build_dataloader({**cfg.train_dataloader, **options}, seed=0)
        found = list(epochs(loader, images))[1:]
        starts.append(f"{min(start for start, _ in found):.2f} s")
        rates += [rate for _, rate in found]
    return [str(workers), f"{median(rates):.1f}", *starts, *["-"] * (2 - len(starts))]


def repeated(cfg: Any, images: int) -> tuple[Any, Any]:
    """Return a hardened config with so many images to train on, and the data set itself."""
    loader = cfg.train_dataloader
    with quiet():
        once = Runner.build_dataloader({**loader, "num_workers": 0, "persistent_workers": False})
    times = -(-images // len(once.dataset))
    loader.sampler = dict(type="DefaultSampler", shuffle=True)  # others may have one epoch alone
    loader.dataset = dict(type="RepeatDataset", times=times, dataset=loader.dataset)
    return harden(cfg), once.dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=200, help="to load each time")
    add_cfg_options(parser, "train_dataloader.dataset.data_root=data/coco/")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)  # as the recipes have it
    cfg = load_config(args.config, options=args.cfg_options)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        cfg, dataset = repeated(cfg, args.images)
        step_times(dataset, min(args.images, len(dataset)))  # read the files
        taken = step_times(dataset, args.images)
        whole = sum(taken.values())
        rows = [[name, f"{ms:.1f} ms", f"{ms / whole:.0%}"] for name, ms in taken.items()]
        print(markdown([["step", "an image", "share"], *rows, ["all", f"{whole:.1f} ms", ""]]))
        rows = [loader_row(cfg, workers, args.images) for workers in args.workers]
    heads = ["workers", "images/s", "first batch, workers that stay", "first batch, new workers"]
    print(f"\n{markdown([heads, *rows])}")


if __name__ == "__main__":
    main()
