"""Explain what a network sees: heat maps of its decisions, or its receptive fields.

    hire-mlp explain work_dirs/NAME photographs --out explained
    hire-mlp explain CHECKPOINT CONFIG a.jpg "b/*.png" --classes cat,dog --out explained
    hire-mlp explain work_dirs/NAME photographs --fields --against swin-t,resnet-50 --out fields

The model and the images are named as for `hire-mlp predict`. Each picture in the new folder is the
image and, beside it, a panel for each class that the model finds there (a classifier: the best, or
those of --classes), which glows where the class comes from: LayerCAM, over all levels of a
detector's neck, or the stages of the backbone. It needs torchcam (pip install torchcam).

With --fields, the folder gets fields.png and fields.csv instead: how strongly each pixel moves the
central token of each map of the backbone, on the average of all the images.

Exit code 1 if an image could not be read; it is named and passed over.
"""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import UserError
from .options import add_cfg_options, names_in
from .predict import be_quiet, say, split_config, tell, track

HELP = "show what a network sees: heat maps of its decisions, its receptive fields"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name the options."""
    add = parser.add_argument
    add("checkpoint", help="checkpoint file, or the work dir of a training")
    parts = "images, folders, quoted patterns; before them the config, if it lies elsewhere"
    add("inputs", nargs="+", metavar="[CONFIG] IMAGE", help=parts)
    add("--out", metavar="DIR", required=True, help="new folder for the pictures")
    add("--classes", metavar="A,B", help="explain these classes only")
    least = "of a detector, least score of a box that is explained (default: 0.3)"
    add("--score-thr", type=float, metavar="X", help=least)
    add("--fields", action="store_true", help="measure receptive fields, and make no heat maps")
    others = "with --fields: other checkpoints or work dirs, or backbones such as swin-t"
    add("--against", metavar="A,B", help=others)
    add("--device", help="such as cpu or cuda:0 (default: the GPU, if there is one)")
    add_cfg_options(parser, "model.test_cfg.score_thr=0.1")


def main(args: argparse.Namespace) -> None:
    """Explain, and say what came of it."""
    from ..explain import compare_fields, explain

    be_quiet(args)
    config, inputs = split_config(args)
    classes, against = names_in([args.classes or ""]), names_in([args.against or ""])
    options: dict[str, Any] = dict(config=config, device=args.device, cfg_options=args.cfg_options)
    if not args.fields:
        if against:
            raise UserError(f"--against {args.against}: expected --fields, too")
        chosen = dict(classes=classes, score_thr=args.score_thr)
        tell(explain(args.checkpoint, inputs, args.out, say=say, track=track, **chosen, **options))
        return
    for option, value in (("--classes", classes), ("--score-thr", args.score_thr)):
        if value is not None:
            raise UserError(f"{option} is for heat maps; leave it out, or --fields")
    others = against or ()
    tell(compare_fields(args.checkpoint, inputs, args.out, against=others, say=say, **options))
