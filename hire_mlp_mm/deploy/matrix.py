"""Know which kinds of models go into a file: the table that `export` asks, in `matrix.json`.

A kind is the classes of a model's parts but the backbone's, such as `FPN + RetinaHead`. For each
kind and each sort of file (`.onnx`, `.pt2`, `int8`) the table says one of

    validated     such a file was written, and on photographs it gave what the host gives
    available     such a file was written and ran; random weights could not tell how good it is
    not tried     the config that was tried prepares its images in a way that has no int8 file
    REASON        it cannot be written, and why

A kind that is not in it is `available`, too: it has a form (see `forms`), and was never tried.
`dev/exports.py` fills the table, and docs/compatibility.md shows it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

from torch import nn

from .forms import NoFormError

VALIDATED, AVAILABLE = "validated", "available"
INT8 = "int8"  # where else the suffix of a file stands
OUTSIDE = ("backbone", "data_preprocessor", "auxiliary_head")  # the last only learns


@cache
def table() -> dict[str, dict[str, str]]:
    """Read the table: by kind, and in it by the suffix of a file, what is known."""
    content: dict[str, dict[str, str]] = json.loads(
        files(__package__).joinpath("matrix.json").read_text("utf-8")
    )
    return content


def standing(kind: str, suffix: str) -> str:
    """Return `validated`, `available`, or the reason why a kind does not go into such a file."""
    return table().get(kind, {}).get(suffix, AVAILABLE)


def check_standing(model: nn.Module, suffix: str, say: Callable[[str], object]) -> None:
    """Raise NoFormError where the table says that a model does not go into such a file."""
    kind = kind_of(model)
    known = standing(kind, suffix)
    if suffix not in table().get(kind, {}):
        say(f"no model with {kind} has been written as {suffix} before: the check will tell")
    elif known not in (VALIDATED, AVAILABLE) and not known.startswith("not tried"):
        raise NoFormError(f"{kind} does not go into {suffix} files: {known}")


def kind_of(model: nn.Module) -> str:
    """Name the kind of a host's model."""
    return " + ".join(dict.fromkeys(classes(model)))


def classes(model: nn.Module) -> list[str]:
    """List the classes of a model's parts, in their order, and those of the heads in a head."""
    found = []
    for name, part in model.named_children():
        if name in OUTSIDE:
            continue
        several: Any = part if isinstance(part, (nn.ModuleList, nn.Sequential)) else [part]
        found += [type(one).__name__ for one in several]
        heads = {key: x for key, x in part.named_children() if key.endswith("_head")}
        found += classes(nn.ModuleDict(heads))
    return found
