r"""Measure HireMLP, or a whole model, in several forms, side by side with other backbones.

    hire-mlp bench --size 512x512 --against reference swin-t
    hire-mlp bench --train --size 512x512 --forms plain plain+cp
    hire-mlp bench --forms fused+compile:float16 --against reference:float16
    hire-mlp bench --forms plain --profile
    hire-mlp bench mask_rcnn_hire_s_1x_coco --size 800x1344 --forms plain fused:bfloat16 \
        --against swin-t swin-t:bfloat16
    hire-mlp bench mask_rcnn_hire_s_1x_coco --train --forms plain plain:bfloat16 plain+cp

Every candidate has a process to itself, so that none profits or suffers from what another left to
the memory allocator. They run in turn, again and again, so that a busy machine slows all of them;
the ratios of the medians are the figures to quote.

A form is `plain` or `fused`, then any of `+cp` (blocks recomputed in the backward pass),
`+channels_last`, `+compile` (as `hire-mlp test --compile-backbone`), `+keep` (on a CPU: freed
memory is kept, as `hire-mlp train`, `test` and `predict` do) and `+graph` (replayed from a CUDA
graph), then its type where that is not float32, such as `:bfloat16`; with `--train` that is
automatic mixed precision. On a GPU float32 is TF32.

With a config it is the whole model that runs, as its host runs it: preprocessing, boxes, masks
pasted, or a training step with the config's optimizer. Its weights are random, and so are the
picture and what it has to learn; a detector's threshold lets about 300 boxes pass, of which 100 are
kept. A type such as `:bfloat16` is automatic mixed precision then, as of `--amp`, and the name of
another backbone stands for the same model with that one. A second table has the parts of a run.

A last table, with `--profile`, has the operations that take the time, as torch's profiler saw
them in a few runs more.

The limit is the time that the machine needs at least: the network's multiply-adds at the rate of a
large matrix product in the same type, or its image, weights and outputs at the rate of a copy; of
a whole model the former alone.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, fields
from pathlib import Path

from ..errors import UserError
from .options import CONFIG, add_cfg_options, parse_size

HELP = "measure time and memory of a backbone or a whole model, beside others"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name the options."""
    import torch

    from ..arch import ARCHS

    add = parser.add_argument
    add("config", nargs="?", help=f"{CONFIG}, of a whole model (default: a HireMLP alone)")
    add_cfg_options(parser, "model.backbone.arch=tiny")
    add("--arch", choices=list(ARCHS), help="of a HireMLP alone (default: small)")
    add("--forms", nargs="+", metavar="FORM", help="default: plain fused; plain with --train")
    add("--against", nargs="*", metavar="NAME", help="default: reference; none with a config")
    add("--size", default="512x512", help="height x width in pixels")
    add("--batch", type=int, default=1)
    add("--train", action="store_true", help="forward and backward, of a config a whole step")
    add("--runs", type=int, default=10, help="of each candidate (default: 10)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--profile", action="store_true", help="tell which operations take time")
    add("--json", metavar="FILE", help="write the figures to a new file")


def main(args: argparse.Namespace) -> None:
    """Measure, and print the tables."""
    from ..bench import Settings, measure, setting, table, table_of_kinds, table_of_parts

    if args.json and Path(args.json).exists():
        raise UserError(f"{args.json} exists; name another file with --json")
    if args.config and args.arch:
        raise UserError(f"--arch {args.arch}: set it by --cfg-options model.backbone.arch=...")
    if args.cfg_options and not args.config:
        raise UserError("--cfg-options without a config; name one, or use --arch")
    for name in ("batch", "runs", "threads"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: expected 1 or more")
    args.size = parse_size(args.size, 64 if args.config else 1, "such as 512x768")
    args.arch = args.arch or "small"
    forms = args.forms or (["plain"] if args.train else ["plain", "fused"])
    others = args.against if args.against is not None else ["reference"] * (not args.config)
    settings = Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})
    candidates = measure([*forms, *others], settings)
    print(table(candidates, settings))
    if args.config:
        print(table_of_parts(candidates))
    if args.profile:
        print(table_of_kinds(candidates))
    if args.json:
        figures = [asdict(c) | dict(median=c.median) for c in candidates]
        content = dict(setting=setting(settings), candidates=figures)
        Path(args.json).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
