#!/usr/bin/env python
"""Convert a weight file of the reference code into one for OpenMMLab.

The backbone loads official files as they are; convert where another program reads the file, or
to get a classifier with its head.
"""

from __future__ import annotations

import argparse
import os
import secrets

import torch
from _common import UserError, run

import hire_mlp_mm
from hire_mlp_mm.checkpoint import (
    CheckpointError,
    StateDict,
    first_line,
    layout,
    match_state_dict,
    read_backbone,
)
from hire_mlp_mm.hire_mlp import ARCHS, HireMLPNet


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Convert a reference weight file for OpenMMLab.")
    parser.add_argument("source", help="weight file: a path or a URL")
    parser.add_argument("target", help="file to write; it must not exist")
    parser.add_argument(
        "--classifier",
        action="store_true",
        help="write an mmpretrain ImageClassifier with its head, not the backbone alone",
    )
    parser.add_argument("--ema", action="store_true", help="take the averaged weights (model_ema)")
    parser.add_argument("--prefix", default="", help="of the backbone, where a file holds several")
    return parser.parse_args()


def as_classifier(state_dict: StateDict, source: str) -> StateDict:
    """Names of an mmpretrain ImageClassifier with a LinearClsHead.

    Raises:
        CheckpointError: the file holds no head.
    """
    heads = {key: value for key, value in state_dict.items() if key.startswith("head.")}
    if not heads:
        raise CheckpointError(f"{source} holds no classification head; leave out --classifier")
    backbone = {f"backbone.{key}": v for key, v in state_dict.items() if key not in heads}
    return backbone | {key.replace("head.", "head.fc."): v for key, v in heads.items()}


def check_complete(state_dict: StateDict, source: str) -> None:
    """Raise CheckpointError unless a network of a known arch has all its tensors."""
    for arch in ARCHS.values():
        if layout(state_dict) == list(zip(arch.depths, arch.dims, strict=True)):
            with torch.device("meta"):
                match_state_dict(state_dict, HireMLPNet(arch).state_dict(), source)


def write_new(data: object, target: str) -> None:
    """Save to a new file, which is whole or absent.

    Raises:
        UserError: it cannot be written, or somebody else has made it meanwhile.
    """
    part = f"{target}.{secrets.token_hex(4)}.part"
    try:
        with open(part, "xb") as file:
            torch.save(data, file)
        place(part, target)
    except FileExistsError as error:
        raise UserError(f"{target} exists already; name a new file") from error
    except (OSError, RuntimeError) as error:
        # What torch makes of a full disk says nothing of it.
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = getattr(cause, "strerror", None) or first_line(cause)
        raise UserError(f"cannot write {target}: {reason}") from error
    finally:
        if os.path.exists(part):
            os.remove(part)


def place(part: str, target: str) -> None:
    """Give a file its name, and let it not take the place of another.

    Raises:
        FileExistsError: there is another.
    """
    try:
        os.link(part, target)  # a rename would replace the other
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        with open(target, "xb"):
            os.replace(part, target)


def main() -> None:
    args = parse_args()
    if os.path.exists(args.target):
        raise UserError(f"{args.target} exists already; name a new file")
    if not os.path.isdir(os.path.dirname(args.target) or "."):
        raise UserError(f"folder {os.path.dirname(args.target)} not found; make it first")
    state_dict = read_backbone(args.source, args.prefix, args.ema)
    check_complete(state_dict, args.source)
    if args.classifier:
        state_dict = as_classifier(state_dict, args.source)
    else:
        state_dict = {k: v for k, v in state_dict.items() if not k.startswith("head.")}
    # Tensors of a file share storages at times; clones make the new file no larger than it needs.
    state_dict = {key: value.clone() for key, value in state_dict.items()}
    meta = dict(source=os.path.basename(args.source), hire_mlp_mm=hire_mlp_mm.__version__)
    write_new(dict(meta=meta, state_dict=state_dict), args.target)
    print(f"wrote {len(state_dict)} tensors to {args.target}")


if __name__ == "__main__":
    run(main)
