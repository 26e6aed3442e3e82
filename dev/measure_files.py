#!/usr/bin/env python
"""Measure exported files: what the hosts' own evaluators say of them, and the time they take.

    python dev/measure_files.py figures CONFIG CHECKPOINT model.onnx model_int8.onnx
    python dev/measure_files.py times retinanet_hire_s_1x_coco --size 800x1333 --folder files

`figures` evaluates PyTorch's model and each file on the config's test set. `times` makes the files
of random weights, sets the threshold of a detector so that about 300 boxes pass it, of which 100
are kept, and puts the host's model with a Swin-T beside them. Both print a table. The times are
medians; all ways to run the model take turns, in one process. `--clock cpu` counts the processor's
time instead, for a busy machine, and for one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData

from hire_mlp_mm.bench.wholes import picture, predict, random_model, with_peer
from hire_mlp_mm.cli.options import add_cfg_options, parse_size
from hire_mlp_mm.deploy import export, int8, runtime
from hire_mlp_mm.deploy.runtime import Runtime
from hire_mlp_mm.engine import load_config
from hire_mlp_mm.errors import UserError
from hire_mlp_mm.prediction.predictor import load_model

CLOCKS = dict(wall=time.perf_counter, cpu=time.process_time)
# The figures of the evaluators that count.
FIGURES = {
    "coco/bbox_mAP": "box AP",
    "coco/segm_mAP": "mask AP",
    "mIoU": "mIoU",
    "accuracy/top1": "top-1",
}

Predict = Callable[[dict[str, Any]], Sequence[Any]]

# Figures ----------------------------------------------------------------------------------------


def fill(model: Runtime, batch: dict[str, Any]) -> Sequence[Any]:
    """Predict on the files of a batch's samples; put what is found where the host's heads do."""
    samples: Sequence[Any] = batch["data_samples"]
    for sample in samples:
        found = model.predict(cv2.imread(sample.img_path))
        tensors = {name: torch.from_numpy(np.asarray(x)) for name, x in found.items()}
        if model.task == "detection":
            tensors["bboxes"] = tensors.pop("boxes")
            sample.pred_instances = InstanceData(**tensors)
        elif model.task == "segmentation":
            sample.pred_sem_seg = PixelData(data=tensors["labels"].long()[None])
        else:
            sample.set_pred_score(tensors["scores"])
    return samples


def evaluate(cfg: Any, predict: Predict) -> dict[str, float]:
    """Return the figures of a config's evaluator for what predicts on its test set."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        loader = Runner.build_dataloader(cfg.test_dataloader)
        evaluator = Evaluator(cfg.test_evaluator)
        evaluator.dataset_meta = loader.dataset.metainfo
        for batch in loader:
            evaluator.process(predict(batch), batch)
        found = evaluator.evaluate(len(loader.dataset))
    return {label: found[key] for key, label in FIGURES.items() if key in found}


def figures(args: argparse.Namespace) -> None:
    """Print the table of a trained model."""
    cfg = load_config(args.config, options=args.cfg_options)
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
    model = load_model(cfg, args.checkpoint)[0].eval()
    model.cfg = cfg
    files = opened(args)
    found = {"PyTorch": evaluate(cfg, model.test_step)}
    found |= {name: evaluate(cfg, partial(fill, file)) for name, file in files.items()}
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        sample = next(iter(Runner.build_dataloader(cfg.test_dataloader)))["data_samples"][0]
    planes = next(iter(files.values())).prepare(cv2.imread(sample.img_path))
    image = np.ascontiguousarray(planes[0].transpose(1, 2, 0))
    ways: dict[str, Callable[[], Any]] = {"PyTorch": partial(by_host, model, image)}
    ways |= {name: partial(by_file, file, image) for name, file in files.items()}
    print_table(timed(ways, args), files, found)


def opened(args: argparse.Namespace) -> dict[str, Runtime]:
    """Open each file by each engine, by the names of both."""
    return {
        f"{Path(path).name}, {engine} {dtype}": Runtime(path, engine, args.threads, dtype)
        for path in args.files
        for engine, (_, dtypes) in runtime.ENGINES.items()
        for dtype in dtypes
    }


# Times ------------------------------------------------------------------------------------------


def times(args: argparse.Namespace) -> None:
    """Print the table of a recipe with random weights."""
    cfg = load_config(args.config, options=args.cfg_options)
    planes = picture(*parse_size(args.size, 32, "from 32x32 up"))
    image = np.ascontiguousarray(planes.permute(1, 2, 0).numpy())
    model, swin = (random_model(one, planes) for one in (cfg, with_peer(cfg, "swin-t")))
    path = Path(args.folder, f"{Path(cfg.filename).stem}.onnx")
    quantised = path.with_name(f"{path.stem}_int8.onnx")
    if not path.exists():
        export(model, path, preprocess=True, say=print)
    if not quantised.exists():
        # Weights that are random agree with nothing: no comparison.
        int8.quantise(Runtime(path, threads=args.threads), quantised, [image])
    args.files = [path, quantised]
    ways: dict[str, Callable[[], Any]] = {
        "PyTorch": partial(by_host, model, image),
        "Swin-T, PyTorch": partial(by_host, swin, image),
    }
    files = opened(args)
    ways |= {name: partial(by_file, file, image) for name, file in files.items()}
    print_table(timed(ways, args), files, {})


# Both -------------------------------------------------------------------------------------------


def by_host(model: Any, image: np.ndarray) -> Any:
    """Predict on an image (H, W, 3) by the host, its preprocessing and pasting included."""
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return predict(model, model.cfg.default_scope, [planes])


def by_file(model: Runtime, image: np.ndarray) -> Any:
    """Predict on an image (H, W, 3) of the size that the graph is to take; paste, too."""
    size = image.shape[:2]
    planes = np.ascontiguousarray(image.transpose(2, 0, 1)[None])
    if model.dtype != np.uint8:
        raise UserError(f"{model.path}: export it with --preprocess")
    return model.finish(model.split(model(planes))[0], size, size)


def timed(ways: dict[str, Callable[[], Any]], args: argparse.Namespace) -> dict[str, float]:
    """Return the median milliseconds of each way; they take turns, once for warming up."""
    clock = CLOCKS[args.clock]
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.runs + 1):
        for name, run in ways.items():
            start = clock()
            run()
            taken[name].append(clock() - start)
    return {name: 1000 * statistics.median(every[1:]) for name, every in taken.items()}


def print_table(
    taken: dict[str, float], files: dict[str, Runtime], found: dict[str, dict[str, float]]
) -> None:
    """Print a row for each way: its figures, MB, milliseconds, and parts of two others' time."""
    names = list(next(iter(found.values()), {}))
    heads = ["", *names, "MB", "ms", "of PyTorch", "of onnxruntime float32"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    runtime_name = next(name for name in files if name.endswith("onnxruntime float32"))
    bases = [taken["PyTorch"], taken[runtime_name]]
    for way, ms in taken.items():
        figures = [f"{found[way][name]:.4g}" for name in names]
        size = f"{Path(files[way].path).stat().st_size / 1e6:.1f}" if way in files else "-"
        parts = [f"{ms / base:.2f}" for base in bases]
        print(f"| {' | '.join([way, *figures, size, f'{ms:.0f}', *parts])} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    trained = verbs.add_parser("figures", help="of a trained model and its files")
    trained.add_argument("config")
    trained.add_argument("checkpoint")
    trained.add_argument("files", nargs="+", help="exported with --preprocess, float32 first")
    recipe = verbs.add_parser("times", help="of a recipe with random weights")
    recipe.add_argument("config")
    recipe.add_argument("--size", default="512x512", help="height x width")
    recipe.add_argument("--folder", default=".", help="for the files; those there are used")
    for verb in (trained, recipe):
        verb.add_argument("--threads", type=int, default=1)
        verb.add_argument("--runs", type=int, default=5)
        verb.add_argument("--clock", choices=CLOCKS, default="wall")
        add_cfg_options(verb, "model.backbone.arch=tiny")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    (figures if args.verb == "figures" else times)(args)


if __name__ == "__main__":
    main()
