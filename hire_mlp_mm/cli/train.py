"""Train a detector, segmentor or classifier.

hire-mlp train cascade_mask_rcnn_hire_s_coco
hire-mlp train mine.py --work-dir work --resume
torchrun --nproc_per_node 8 -m hire_mlp_mm train mine.py --launcher pytorch --amp
"""

from __future__ import annotations

import argparse

from .options import add_run_options, load

HELP = "train a detector, segmentor or classifier"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name the options."""
    add_run_options(parser)
    parser.add_argument("--amp", action="store_true", help="mixed precision, on a GPU")
    parser.add_argument(
        "--amp-dtype", choices=["float16", "bfloat16"], default="float16", help="type of --amp"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CKPT",
        help="go on from a checkpoint, or from the newest one in the work dir",
    )
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate by the batch size over the recipe's",
    )


def main(args: argparse.Namespace) -> None:
    """Train as the config and the options say."""
    from ..engine import options, run
    from ..engine.config import check_file

    cfg = load(args)
    options.check_processes(cfg)
    if args.amp:
        options.mixed_precision(cfg, args.amp_dtype)
    if args.auto_scale_lr:
        options.scale_lr(cfg)
    if args.resume not in (None, "auto"):
        check_file(args.resume, "checkpoint")
    options.run_backbone(cfg, channels_last=args.channels_last, compiled=args.compile_backbone)
    run.train(cfg, resume=args.resume)
