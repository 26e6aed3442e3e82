"""Predict on images, folders and videos: pictures, and results for machines.

    hire-mlp predict work_dirs/NAME photographs --out predicted
    hire-mlp predict CHECKPOINT CONFIG a.jpg "b/*.png" clip.mp4 --out predicted
    hire-mlp predict FILE.onnx photographs --out predicted

The model is a checkpoint, or the work dir of a training: its best checkpoint, or else its last one.
The config is the one beside it, if none is named. A file of `hire-mlp export` is run by onnxruntime
and needs no config, neither torch nor OpenMMLab. The new folder gets the pictures and videos with
the predictions drawn in, and of a detector predictions.json (results in COCO's format), of a
segmentor masks/*.png (the label in each pixel), of a classifier predictions.csv (the five best).

Exit code 1 if an image could not be read; it is named and passed over.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from ..data.report import count
from ..errors import UserError
from ..memory import keep_memory
from . import OutcomeError
from .options import add_amp_options, add_cfg_options, amp_dtype, names_in

HELP = "predict on images, folders and videos: pictures, and results as files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name the options."""
    add = parser.add_argument
    add("checkpoint", help="checkpoint file, the work dir of a training, or an exported .onnx file")
    parts = "images, folders, quoted patterns, videos; before them the config, if it lies elsewhere"
    add("inputs", nargs="+", metavar="[CONFIG] INPUT", help=parts)
    add("--out", metavar="DIR", required=True, help="new folder for what is predicted")
    add(
        "--score-thr",
        type=float,
        metavar="X",
        help="least score of a box, in pictures and files (default: 0.3)",
    )
    add("--classes", metavar="A,B", help="predict these classes only")
    same = "predict N images of one size at once (default: 1)"
    add("--batch-size", type=int, default=1, metavar="N", help=same)
    add("--device", help="such as cpu or cuda:0 (default: the GPU, if there is one)")
    add("--fuse", action="store_true", help="use the exact inference form")
    add_amp_options(parser)
    runs = "of an .onnx file: onnxruntime (default), or openvino, also with --amp"
    add("--engine", choices=["onnxruntime", "openvino"], help=runs)
    add("--no-pictures", action="store_true", help="write the results for machines alone")
    add_cfg_options(parser, "model.test_cfg.score_thr=0.1")


def needs_openmmlab(args: argparse.Namespace) -> bool:
    """Tell whether the model is one of the hosts."""
    from ..prediction.inputs import is_exported

    return not is_exported(args.checkpoint)


def main(args: argparse.Namespace) -> None:
    """Predict, and say what came of it."""
    from ..prediction import predict

    be_quiet(args)
    keep_memory()
    dtype = amp_dtype(args)
    config, inputs = split_config(args)
    done = predict(
        args.checkpoint,
        inputs,
        args.out,
        config=config,
        pictures=not args.no_pictures,
        say=say,
        track=track,
        score_thr=args.score_thr,
        classes=names_in([args.classes or ""]),
        batch_size=args.batch_size,
        device=args.device,
        fused=args.fuse,
        dtype=dtype,
        engine=args.engine,
        cfg_options=args.cfg_options,
    )
    tell(done)


def tell(done: Any) -> None:
    """Say what came of images, or raise OutcomeError where some images failed."""
    total = done.images + len(done.faults)
    speed = done.images / max(done.seconds, 1e-9)
    written = ", ".join(sorted(map(str, done.folder.iterdir()))) if done.images else "nothing"
    images = count(done.images, "images")
    say(f"{images} in {done.seconds:.1f} s, {speed:.1f} images/s: {written}")
    if done.boxes is not None and done.images:
        counts = [f"{number} {name}" for name, number in done.boxes.most_common() if number]
        none = "none; a lower --score-thr, such as 0.05, shows those it is less sure of"
        say(f"boxes: {', '.join(counts) or none}")
    if done.faults:
        raise OutcomeError(
            f"{done.images} of {total} images; {len(done.faults)} failed (named above)"
        )


def be_quiet(args: argparse.Namespace) -> None:
    """Keep the hosts from speaking about themselves, and the decoders of what is said anyway."""
    import warnings

    import cv2

    if needs_openmmlab(args):
        from mmengine.logging import MMLogger

        MMLogger.get_current_instance().setLevel("WARNING")
    warnings.simplefilter("ignore")
    # OpenCV 5 has moved it.
    place: Any = cv2 if hasattr(cv2, "setLogLevel") else vars(cv2.utils)["logging"]
    place.setLogLevel(0)
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg's level of silence


def split_config(args: argparse.Namespace) -> tuple[str | None, list[str]]:
    """Tell the config, if the first of the inputs is one, from the images; or raise UserError."""
    if args.checkpoint.endswith(".py"):
        raise UserError(
            f"{args.checkpoint} is a config; expected the checkpoint, or the work dir of a "
            "training, before it"
        )
    first, *others = args.inputs
    if not is_config(first, needs_openmmlab(args)):
        return None, args.inputs
    if not others:
        raise UserError(f"no images after the config {first}; name files or folders")
    return first, others


def is_config(word: str, may_be_recipe: bool) -> bool:
    """Tell whether a word names a config, and no image."""
    if word.endswith(".py") or "::" in word:
        return True
    if may_be_recipe and not os.path.exists(word):
        from ..engine.config import find_config

        with contextlib.suppress(UserError):
            return bool(find_config(word))
    return False


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def track(found: Iterable[Any], total: int) -> Iterator[Any]:
    """Show a progress bar with the images per second, on a terminal."""
    if not sys.stdout.isatty() or not importlib.util.find_spec("rich"):  # which mmengine brings
        yield from found
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    speed = TextColumn("{task.fields[speed]}")
    columns = (BarColumn(), MofNCompleteColumn(), speed, TimeLeft())
    with Progress(*columns) as progress:
        task = progress.add_task("", total=total, speed="")
        for one in found:
            yield one
            speed_now = progress.tasks[0].speed
            shown = f"{speed_now:.1f} images/s" if speed_now else ""
            progress.update(task, advance=1, speed=shown)
