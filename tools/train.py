#!/usr/bin/env python
"""Train a detector, segmentor or classifier.

python tools/train.py configs/cascade_mask_rcnn_hire_s_coco.py
bash tools/dist_train.sh configs/cascade_mask_rcnn_hire_s_coco.py 8 --amp
"""

from __future__ import annotations

import argparse
import errno

from _backbone import BackboneHook
from _common import (
    UserError,
    build_runner,
    check_data,
    check_file,
    load_config,
    make_parser,
    run,
)
from _data import batch_errors, guard_data
from _finite import FiniteHook
from _resume import CURE, make_resumable
from mmengine.config import Config
from mmengine.device import get_device


def parse_args() -> argparse.Namespace:
    parser = make_parser("Train a detector, segmentor or classifier.")
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
    return parser.parse_args()


def apply_options(cfg: Config, args: argparse.Namespace) -> None:
    """Put the options of training into the config.

    Raises:
        UserError: an option that this config or machine cannot follow.
    """
    if args.amp:
        if get_device() == "cpu":
            raise UserError("--amp needs a GPU, and none was found; leave it out")
        cfg.optim_wrapper.type = "AmpOptimWrapper"
        cfg.optim_wrapper.setdefault("loss_scale", "dynamic")
        cfg.optim_wrapper.dtype = args.amp_dtype
    if "FSDP" in cfg.get("strategy", {}).get("type", "") and args.launcher == "none":
        raise UserError(
            f"{args.config} divides the model among several processes; "
            f"start them by tools/dist_train.sh"
        )
    if args.auto_scale_lr:
        if "base_batch_size" not in cfg.get("auto_scale_lr", {}):
            raise UserError(f"--auto-scale-lr: {args.config} has no auto_scale_lr.base_batch_size")
        cfg.auto_scale_lr.enable = True
    for path in (args.resume, cfg.get("load_from")):
        if path and path != "auto":
            check_file(path, "checkpoint")


def train(cfg: Config, args: argparse.Namespace) -> None:
    """Train as the config and the options say."""
    runner = build_runner(cfg)
    guard_data(runner)
    runner.register_hook(FiniteHook())
    if args.channels_last or args.compile_backbone:
        runner.register_hook(BackboneHook(False, None, args.channels_last, args.compile_backbone))
    in_config = (cfg.get("load_from") or "auto") if cfg.get("resume") else None
    make_resumable(runner, args.resume or in_config)
    with batch_errors(runner):
        runner.train()


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    apply_options(cfg, args)
    check_data(cfg, ("train", "val"))
    try:
        train(cfg, args)
    except OSError as error:  # of logs and the like: a checkpoint's is known for what it is
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"{cfg.work_dir}: {error.strerror}; {CURE}") from error


if __name__ == "__main__":
    run(main)
