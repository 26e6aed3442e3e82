"""Export a whole model as ONNX (.onnx) or by torch.export (.pt2), checked, for images of any size.

    hire-mlp export mask_rcnn_hire_s_1x_coco CHECKPOINT mask_rcnn.onnx --preprocess --check photos
    hire-mlp export upernet_hire_s_ade20k CHECKPOINT upernet.onnx
    hire-mlp export upernet_hire_s_ade20k CHECKPOINT upernet_int8.onnx --int8 photos
    hire-mlp export mask_rcnn_hire_s_1x_coco CHECKPOINT backbone.pt2 --backbone --fuse

A detector gives boxes, scores, labels and masks; a segmentor its logits, of the size of the image;
a classifier its scores; with --backbone any of them its feature maps. The graph takes images as the
config's data preprocessor gives them, (N, 3, H, W) in float32, RGB, normalised; with --preprocess,
as they are loaded, in uint8, BGR. What that means in numbers stands in the file. H and W are free,
from 32 pixels up, and so is N, but for a detector, which takes one image.

The file gets its name once its outputs equal PyTorch's at several sizes: a detector's box by box.
With --int8 that file is then quantised, and the command says how far the two agree on photographs.
"""

from __future__ import annotations

import argparse
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

from ..errors import UserError
from . import OutcomeError
from .options import CONFIG, add_cfg_options, parse_size

HELP = "write a whole model, or its backbone, as ONNX or .pt2, and check the file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name the options."""
    add = parser.add_argument
    add("config", help=CONFIG)
    add("checkpoint", nargs="?", help="checkpoint file; without it random weights")
    add("out", help="file to write, .onnx or .pt2; it must not exist")
    add("--backbone", action="store_true", help="export the backbone alone")
    add("--preprocess", action="store_true", help="normalise in the graph: images of uint8, BGR")
    add("--paste", action="store_true", help="of a detector, also masks of the image's size")
    add(
        "--check", metavar="DIR", help="photographs to check a detector with (default: random ones)"
    )
    add("--fuse", action="store_true", help="export the exact inference form")
    limit = "largest difference to PyTorch's output, over its largest value (default: 1e-4); "
    limit += "not for detectors"
    add("--tolerance", type=float, default=1e-4, help=limit)
    calibrated = "quantise, calibrated on up to 50 photographs of this folder, as of the task"
    add("--int8", metavar="DIR", help=calibrated)
    add("--size", default="512x512", help="height x width to measure the time at")
    add_cfg_options(parser, "model.backbone.arch=tiny")


def main(args: argparse.Namespace) -> None:
    """Export, and say what came of it."""
    import torch

    from ..deploy import CheckError, export
    from ..deploy.exporting import check_target
    from ..deploy.forms import NoFormError
    from ..deploy.tracing import LEAST
    from ..engine import load_config
    from ..engine.config import check_file

    warnings.simplefilter("ignore")  # the hosts' and the exporter's, about themselves
    say = partial(print, flush=True)
    if args.checkpoint is None and args.out.endswith((".pth", ".safetensors")):
        raise UserError(
            f"{args.out} is a checkpoint; name the file to write after it, .onnx or .pt2"
        )
    check_target(Path(args.out))
    if args.checkpoint:
        check_file(args.checkpoint, "checkpoint")
    height, width = parse_size(args.size, LEAST, f"from {LEAST}x{LEAST} up")
    say(f"reading {args.config}")
    cfg = load_config(args.config, options=args.cfg_options)
    try:
        with stoppable():
            done = export(
                cfg,
                args.out,
                args.checkpoint,
                backbone=args.backbone,
                fused=args.fuse,
                preprocess=args.preprocess,
                pasted=args.paste,
                photographs=args.check,
                tolerance=args.tolerance,
                int8=args.int8,
                measure_at=(height, width),
                say=say,
            )
    except NoFormError as error:
        raise UserError(f"{error}; --backbone exports its feature maps") from error
    except CheckError as error:
        raise OutcomeError(f"{args.out} not written: {error}") from error
    program = "onnxruntime" if done.path.suffix == ".onnx" else "the file"
    ours, theirs = done.milliseconds or (0, 0)
    say(
        f"{program} {ours:.0f} ms, PyTorch {theirs:.0f} ms: an image of {height} x {width}, "
        f"CPU, threads: {torch.get_num_threads()}"
    )
    facts = done.facts
    normalised = f"(image - {facts['mean']}) / {facts['std']}"
    given = "uint8" if args.preprocess else normalised
    one = "1" if facts["task"] == "detection" else "N"
    say(
        f"wrote {done.path}, {done.path.stat().st_size / 1e6:.0f} MB: image ({one}, 3, H, W), "
        f"{facts['channels']}, {given}, to {', '.join(done.names)}"
    )


@contextmanager
def stoppable() -> Iterator[None]:
    """Have Ctrl-C and a kill end the process, and its temporary files removed.

    By itself a kill leaves them, and torch's exporter takes Ctrl-C for a fault of the model.
    """
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except Exception:
        if received:
            stop(received[0], None)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
