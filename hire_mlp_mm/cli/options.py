"""Name the options that several verbs have, as MMDetection's users know them."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable
from typing import Any

from ..errors import UserError

CONFIG = "config: a file, PACKAGE::FILE, or the NAME of a recipe"


def add_cfg_options(parser: argparse.ArgumentParser, example: str) -> None:
    """Add `--cfg-options`, which overrides settings of the config."""

    class Options(argparse.Action):
        """Read KEY=VALUE as mmengine does; say which word is none."""

        def __call__(self, parser: argparse.ArgumentParser, namespace: Any, *args: Any) -> None:
            from mmengine.config import DictAction

            for word in args[0]:
                if not word.partition("=")[0] or "=" not in word:
                    expected = "expected KEY=VALUE, and the config before it"
                    parser.error(f"--cfg-options: {expected}; found {word!r}")
            try:
                DictAction(self.option_strings, self.dest)(parser, namespace, *args)
            except AssertionError as error:
                parser.error(f"--cfg-options: {error}")

    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=Options,
        default={},
        metavar="KEY=VALUE",
        help=f"override settings of the config, such as {example}",
    )


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add what training and testing share."""
    add = parser.add_argument
    add("config", help=CONFIG)
    add("--work-dir", help="folder for logs and results (default: work_dirs/NAME)")
    add_cfg_options(parser, "model.backbone.init_cfg=None")
    add(
        "--compile-backbone",
        action="store_true",
        help="compile the backbone's blocks; for training on crops of one size, as every height "
        "takes graphs of its own there",
    )
    add(
        "--channels-last",
        action="store_true",
        help="hand maps on with their channels last in memory, to neck and heads, too",
    )
    add("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    add("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def add_amp_options(parser: argparse.ArgumentParser) -> None:
    """Add `--amp` and `--amp-dtype`."""
    add = parser.add_argument
    add("--amp", action="store_true", help="automatic mixed precision in the whole model")
    default = "bfloat16 on a CPU, float16 on a GPU"
    add("--amp-dtype", choices=["bfloat16", "float16"], help=f"type of --amp (default: {default})")


def amp_dtype(args: argparse.Namespace) -> str | None:
    """Return the type that `--amp` asks for, `auto` if none is named; None without it."""
    if args.amp_dtype and not args.amp:
        raise UserError(f"--amp-dtype {args.amp_dtype}: expected --amp, too")
    return (args.amp_dtype or "auto") if args.amp else None


def config_of(args: argparse.Namespace) -> Any:
    """Load the config that `add_run_options` names, with the options merged in."""
    from ..engine import load_config

    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))  # where a launcher gave it as option
    return load_config(args.config, args.work_dir, args.cfg_options, args.launcher)


def names_in(words: Iterable[str] | None) -> list[str] | None:
    """Read names of classes from words and from commas within them; None where there is none."""
    names = [name.strip() for word in words or () for name in word.split(",")]
    return [name for name in names if name] or None


def parse_size(text: str, least: int, hint: str, order: str = "height x width") -> tuple[int, int]:
    """Read the two sides of `512x768`, or raise UserError where one is less than `least`."""
    size = re.fullmatch(r"(\d+)x(\d+)", text)
    if not size or min(int(size[1]), int(size[2])) < least:
        raise UserError(f"--size {text}: expected {order}, {hint}")
    return int(size[1]), int(size[2])
