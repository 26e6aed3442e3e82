"""Options that several verbs have, as MMDetection's users know them."""

from __future__ import annotations

import argparse
from typing import Any


def add_cfg_options(parser: argparse.ArgumentParser, example: str) -> None:
    """Add `--cfg-options`, which overrides settings of the config."""
    from mmengine.config import DictAction

    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        default={},
        metavar="KEY=VALUE",
        help=f"override settings of the config, such as {example}",
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add what training and testing share."""
    parser.add_argument("config", help="config: a file, PACKAGE::FILE, or the NAME of a recipe")
    parser.add_argument("--work-dir", help="folder for logs and results (default: work_dirs/NAME)")
    add_cfg_options(parser, "model.backbone.init_cfg=None")
    parser.add_argument(
        "--compile-backbone",
        action="store_true",
        help="compile the backbone's blocks; for training on crops of one size, as every height "
        "takes graphs of its own there",
    )
    parser.add_argument(
        "--channels-last",
        action="store_true",
        help="hand maps on with their channels last in memory, to neck and heads, too",
    )
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def load(args: argparse.Namespace) -> Any:
    """Load the config that `add_run_options` names, with the options merged in."""
    from ..engine import run

    run.set_local_rank(args.local_rank)
    return run.load(args.config, args.work_dir, args.cfg_options, args.launcher)
