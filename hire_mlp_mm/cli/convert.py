"""Convert a weight file of the reference code into one for OpenMMLab.

    hire-mlp convert hire_mlp_small.pth backbone.pth
    hire-mlp convert hire_mlp_small.pth classifier.pth --classifier

The backbone loads official files as they are; convert where another program reads the file, or to
get a classifier with its head.
"""

from __future__ import annotations

import argparse

HELP = "write the reference code's weights as a file for OpenMMLab"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name the options."""
    add = parser.add_argument
    add("source", help="weight file: a path or a URL")
    add("target", help="file to write; it must not exist")
    whole = "write an mmpretrain ImageClassifier with its head, not the backbone alone"
    add("--classifier", action="store_true", help=whole)
    add("--ema", action="store_true", help="take the averaged weights (model_ema)")
    add("--prefix", default="", help="of the backbone, where a file holds several")


def main(args: argparse.Namespace) -> None:
    """Write the new file."""
    from ..convert import convert

    count = convert(args.source, args.target, args.classifier, args.ema, args.prefix)
    print(f"wrote {count} tensors to {args.target}")
