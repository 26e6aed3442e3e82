"""Train a detector, segmentor or classifier.

hire-mlp train cascade_mask_rcnn_hire_s_coco
hire-mlp train mine.py --work-dir work --resume
torchrun --nproc_per_node 8 -m hire_mlp_mm train mine.py --launcher pytorch --amp
"""

from __future__ import annotations

import argparse

from ..memory import keep_memory
from .options import add_amp_options, add_run_options, amp_dtype, config_of

HELP = "train a detector, segmentor or classifier"
# What other programs have options for.
KEYS = {
    "--epochs": "train_cfg.max_epochs=N",
    "--iters": "train_cfg.max_iters=N",
    "--batch-size": "train_dataloader.batch_size=N",
    "--lr": "optim_wrapper.optimizer.lr=X",
    "--seed": "randomness.seed=N",
    "--load-from": "load_from=FILE",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name the options."""
    add_run_options(parser)
    add = parser.add_argument
    add_amp_options(parser)
    start = "go on from a checkpoint, or from the newest one in the work dir"
    add("--resume", nargs="?", const="auto", metavar="CKPT", help=start)
    scale = "scale the learning rate by the batch size over the recipe's"
    add("--auto-scale-lr", action="store_true", help=scale)


def main(args: argparse.Namespace) -> None:
    """Train as the config and the options say."""
    from ..engine import options, train
    from ..engine.config import check_file

    keep_memory()
    cfg = config_of(args)
    options.check_processes(cfg)
    dtype = amp_dtype(args)
    if dtype:
        options.scale_losses(cfg, dtype)
    if args.auto_scale_lr:
        options.scale_lr(cfg)
    if args.resume not in (None, "auto"):
        check_file(args.resume, "checkpoint")
    if args.resume is None and not cfg.get("resume"):
        options.refuse_used(cfg)
    forms = dict(channels_last=args.channels_last, compiled=args.compile_backbone)
    options.use_form(cfg, training=True, dtype=dtype, **forms)
    train(cfg, resume=args.resume)
