#!/usr/bin/env python
"""Evaluate a checkpoint: box and mask AP, mIoU, or accuracy, as the config's evaluator says.

python tools/test.py configs/cascade_mask_rcnn_hire_s_coco.py CHECKPOINT
python tools/test.py configs/upernet_hire_s_ade20k.py CHECKPOINT --tta     # multi-scale mIoU
python tools/test.py CONFIG CHECKPOINT --fuse    # same figures, faster: BatchNorm folded
python tools/test.py CONFIG CHECKPOINT --fuse --backbone-dtype bfloat16
"""

from __future__ import annotations

import argparse
import os

from _backbone import DTYPES, BackboneHook
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
from mmengine.config import Config, ConfigDict
from mmengine.registry import METRICS


def parse_args() -> argparse.Namespace:
    parser = make_parser("Evaluate a checkpoint.")
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument(
        "--out",
        metavar="FILE.pkl",
        help="write the predictions to a new file; a segmentor's are large, for its logits are "
        "among them",
    )
    parser.add_argument("--show-dir", metavar="DIR", help="draw the predictions into a folder")
    parser.add_argument("--tta", action="store_true", help="test-time augmentation of the config")
    parser.add_argument("--fuse", action="store_true", help="test the exact inference form")
    parser.add_argument(
        "--backbone-dtype",
        choices=["bfloat16", "float16"],
        help="type that the backbone computes in",
    )
    return parser.parse_args()


def show_in(cfg: Config, folder: str) -> None:
    """Have every prediction drawn beside its ground truth into `folder`."""
    hook = cfg.default_hooks.get("visualization")
    if hook is None:
        raise UserError("--show-dir: the config's default_hooks have no visualization hook")
    folder = os.path.abspath(folder)
    hook.update(interval=1)
    if cfg.default_scope == "mmdet":
        hook.update(draw=True, test_out_dir=folder)
    elif cfg.default_scope == "mmseg":
        hook.update(draw=True)
        cfg.visualizer.save_dir = folder
    else:
        hook.update(enable=True, out_dir=folder)


def augment(cfg: Config) -> None:
    """Wrap the model and the data for test-time augmentation."""
    if "tta_model" not in cfg or "tta_pipeline" not in cfg:
        raise UserError("--tta: the config has no tta_model and tta_pipeline")
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    if "strategy" in cfg:  # how to train; the plain runner tests what came of it
        cfg.pop("strategy")
        cfg.pop("runner_type", None)
    check_file(args.checkpoint, "checkpoint")
    check_data(cfg, ("test",))
    if args.out and os.path.exists(args.out):
        raise UserError(f"--out {args.out} exists already; name a new file")
    if args.out and not args.out.endswith((".pkl", ".pickle")):
        raise UserError(f"--out {args.out}: expected a name that ends in .pkl")
    if args.show_dir:
        show_in(cfg, args.show_dir)
    if args.tta:
        augment(cfg)
    cfg.load_from = args.checkpoint
    runner = build_runner(cfg, whole=True)
    guard_data(runner)
    if args.out:
        # MMDetection's dump packs masks; the others dump their data samples as they are.
        dump = "mmdet.DumpDetResults" if cfg.default_scope == "mmdet" else "DumpResults"
        runner.test_evaluator.metrics.append(METRICS.build(dict(type=dump, out_file_path=args.out)))
    dtype = DTYPES[args.backbone_dtype] if args.backbone_dtype else None
    if args.fuse or dtype or args.channels_last or args.compile_backbone:
        runner.register_hook(
            BackboneHook(args.fuse, dtype, args.channels_last, args.compile_backbone)
        )
    with batch_errors(runner):
        runner.test()


if __name__ == "__main__":
    run(main)
