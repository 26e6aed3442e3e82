"""Evaluate a checkpoint: box and mask AP, mIoU, or accuracy, as the config's evaluator says.

hire-mlp test cascade_mask_rcnn_hire_s_coco CHECKPOINT
hire-mlp test upernet_hire_s_ade20k CHECKPOINT --tta     # multi-scale mIoU
hire-mlp test CONFIG CHECKPOINT --fuse    # same figures, faster: BatchNorm folded
hire-mlp test CONFIG CHECKPOINT --fuse --amp    # the fastest: mixed precision, too
"""

from __future__ import annotations

import argparse

from ..memory import keep_memory
from .options import add_amp_options, add_run_options, amp_dtype, config_of

HELP = "evaluate a checkpoint: AP, mIoU or accuracy"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name the options."""
    add_run_options(parser)
    add = parser.add_argument
    add("checkpoint", help="checkpoint file")
    large = "a segmentor's are large, for its logits are among them"
    add("--out", metavar="FILE.pkl", help=f"write the predictions to a new file; {large}")
    add("--show-dir", metavar="DIR", help="draw the predictions into a folder")
    add("--tta", action="store_true", help="test-time augmentation of the config")
    add("--fuse", action="store_true", help="test the exact inference form")
    add_amp_options(parser)


def main(args: argparse.Namespace) -> None:
    """Test as the config and the options say."""
    from ..engine import options, test
    from ..engine.config import check_file

    keep_memory()
    dtype = amp_dtype(args)
    cfg = config_of(args)
    check_file(args.checkpoint, "checkpoint")
    if args.out:
        options.dump_predictions(cfg, args.out)
    if args.show_dir:
        options.draw_predictions(cfg, args.show_dir)
    if args.tta:
        options.augment_tests(cfg)
    options.use_form(
        cfg,
        fused=args.fuse,
        dtype=dtype,
        channels_last=args.channels_last,
        compiled=args.compile_backbone,
    )
    test(cfg, args.checkpoint)
