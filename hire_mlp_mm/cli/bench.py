"""Measure HireMLP and its inference form, side by side with other backbones.

    hire-mlp bench --size 512x512 --against reference swin-t
    hire-mlp bench --train --size 512x512 --forms plain plain+cp
    hire-mlp bench --forms fused+compile:float16 --against reference:float16
    hire-mlp bench --forms plain --profile

Every candidate has a process to itself, so that none profits or suffers from what another left to
the memory allocator. They run in turn, again and again, so that a busy machine slows all of them;
the ratios of the medians are the figures to quote.

A form is `plain` or `fused`, then any of `+cp` (blocks recomputed in the backward pass),
`+channels_last` and `+compile` (as `hire-mlp test --compile-backbone`), then its type where that is
not float32, such as `:bfloat16`.

A second table, with `--profile`, has the operations that take the time, as torch's profiler saw
them in a few runs more.

The limit is the time that the machine needs at least: the network's multiply-adds at the rate of a
large matrix product in the same type, or its image, weights and outputs at the rate of a copy.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, fields
from pathlib import Path

from ..errors import UserError
from .options import parse_size

HELP = "measure time and memory, beside the reference and other backbones"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name the options."""
    import torch

    from ..arch import ARCHS

    add = parser.add_argument
    add("--arch", choices=list(ARCHS), default="small")
    add("--forms", nargs="+", default=["plain", "fused"], metavar="FORM")
    add("--against", nargs="*", default=["reference"], metavar="NAME")
    add("--size", default="512x512", help="height x width in pixels")
    add("--batch", type=int, default=1)
    add("--train", action="store_true", help="forward and backward, float32")
    add("--runs", type=int, default=10, help="of each candidate (default: 10)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--profile", action="store_true", help="tell which operations take time")
    add("--json", metavar="FILE", help="write the figures to a new file")


def main(args: argparse.Namespace) -> None:
    """Measure, and print the tables."""
    from ..bench import Settings, measure, setting, table, table_of_kinds

    if args.json and Path(args.json).exists():
        raise UserError(f"{args.json} exists; name another file with --json")
    args.size = parse_size(args.size, 1, "such as 512x768")
    settings = Settings(**{field.name: getattr(args, field.name) for field in fields(Settings)})
    candidates = measure([*args.forms, *args.against], settings)
    print(table(candidates, settings))
    if args.profile:
        print(table_of_kinds(candidates))
    if args.json:
        figures = [asdict(c) | dict(median=c.median) for c in candidates]
        content = dict(setting=setting(settings), candidates=figures)
        Path(args.json).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
