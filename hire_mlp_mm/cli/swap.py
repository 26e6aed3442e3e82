"""Put HireMLP into an existing config of MMDetection, MMSegmentation, MMPretrain or MMPose.

    hire-mlp swap mmdet::retinanet/retinanet_r50_fpn_1x_coco.py --arch small

What reads the backbone (neck, heads) gets the new channels; the weights, the image normalisation
and what belongs to the old backbone alone follow; everything else stays. The written config says
in its first lines what was changed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "put HireMLP into a config of MMDetection, MMSegmentation, MMPretrain or MMPose"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name the options."""
    from ..arch import ARCHS

    add = parser.add_argument
    add("config", help="a file, or PACKAGE::FILE such as mmdet::detr/NAME.py")
    add("--arch", choices=list(ARCHS), default="small", help="(default: small)")
    add("--out", help="file to write (default: NAME_hire_ARCH.py, here)")
    published = "(default: the published ones of the arch)"
    add(
        "--weights",
        help=f"ImageNet weights: a file, a URL, hire-mlp://NAME, or 'none' {published}",
    )


def main(args: argparse.Namespace) -> None:
    """Write the new config, and say what was changed."""
    from ..configure import make_swap
    from ..configure.beside import Beside
    from ..engine.config import check_file, read_config

    cfg = read_config(args.config)
    if args.weights not in (None, "none"):
        check_file(args.weights, "weight file")
    out = Path(args.out or f"{Path(cfg.filename).stem}_hire_{args.arch}.py")
    Beside(out).refuse_existing()
    swap = make_swap(cfg, args.arch, args.weights)
    out.write_text(swap.text(args.config), encoding="utf-8")
    print("Changed:", *swap.changes, sep="\n    ")
    print("Kept: all else. For you to decide:", *swap.advice(), sep="\n    ")
    print(f"{out}: {args.config} with HireMLP {args.arch}; train it with hire-mlp train {out}")
