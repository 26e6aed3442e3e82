"""Write a weight file of the reference code as one for OpenMMLab. Only torch is imported here.

The backbone loads official files as they are; convert where another program reads the file, or to
get a classifier with its head.
"""

from __future__ import annotations

import os
import secrets

import torch

from . import __version__
from .arch import ARCHS
from .checkpoint import CheckpointError, StateDict, match_state_dict, read_backbone
from .errors import UserError, first_line
from .hire_mlp import HireMLPNet
from .names import layout


def convert(
    source: str,
    target: str,
    classifier: bool = False,
    ema: bool = False,
    prefix: str = "",
) -> int:
    """Convert a weight file; the new file is whole or absent.

    Args:
        source: a path or a URL.
        target: file to write; it must not exist.
        classifier: write an mmpretrain ImageClassifier with its head, not the backbone alone.
        ema: take the averaged weights of a file that has both.
        prefix: of the backbone, where a file holds several.

    Returns:
        The number of tensors that were written.

    Raises:
        FileNotFoundError: no file at `source`.
        CheckpointError: it cannot be read, or is not of Hire-MLP; the message names it.
        UserError: `target` cannot be written.
    """
    if os.path.exists(target):
        raise UserError(f"{target} exists already; name a new file")
    if target.endswith(".safetensors"):
        raise UserError(f"{target}: expected a name that ends in .pth, as a torch file is written")
    if not os.path.isdir(os.path.dirname(target) or "."):
        raise UserError(f"folder {os.path.dirname(target)} not found; make it first")
    state_dict = read_backbone(source, prefix, ema)
    check_complete(state_dict, source)
    head = {key: state_dict.pop(key) for key in list(state_dict) if key.startswith("head.")}
    if classifier:
        if not head:
            raise CheckpointError(f"{source} holds no classification head; leave out --classifier")
        # By mmpretrain's names of an ImageClassifier with a LinearClsHead.
        state_dict = {f"backbone.{key}": value for key, value in state_dict.items()}
        state_dict |= {key.replace("head.", "head.fc."): value for key, value in head.items()}
    # Tensors of a file share storages at times; clones make the new file no larger than it needs.
    state_dict = {key: value.clone() for key, value in state_dict.items()}
    meta = dict(source=os.path.basename(source), hire_mlp_mm=__version__)
    write_new(dict(meta=meta, state_dict=state_dict), target)
    return len(state_dict)


def check_complete(state_dict: StateDict, source: str) -> None:
    """Raise CheckpointError unless a network of a known arch has all its tensors."""
    for arch in ARCHS.values():
        if layout(state_dict) == list(zip(arch.depths, arch.dims, strict=True)):
            with torch.device("meta"):
                match_state_dict(state_dict, HireMLPNet(arch).state_dict(), source)


def write_new(data: object, target: str) -> None:
    """Save to a new file, which is whole or absent; raise UserError if somebody has made it."""
    part = f"{target}.{secrets.token_hex(4)}.part"
    try:
        with open(part, "xb") as file:
            torch.save(data, file)
        name_new(part, target)
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


def name_new(part: str, target: str) -> None:
    """Give a file its name; raise FileExistsError if another has that name already."""
    try:
        os.link(part, target)  # a rename would replace the other
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        with open(target, "xb"):
            os.replace(part, target)
