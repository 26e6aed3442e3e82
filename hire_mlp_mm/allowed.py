"""List what a weight file may name besides tensors, and what stands for it when the file is read.

Torch reads a file as data: a class or function that the file names is looked up in a list, and one
that isn't there is refused. This is the list, for all readers of this package. Where mmengine is
installed, its log takes the place of what stands for it here (`hire_mlp_mm.loading`).

Only torch is imported here, and numpy where it is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch

from .errors import CheckpointError

Entry = Callable[..., Any] | tuple[Callable[..., Any], str]  # as torch's list has them

HISTORY = "mmengine.logging.history_buffer.HistoryBuffer"
HISTORY_METHODS = ("current", "max", "mean", "min")
# In the authors' files, whose training script saved its command line. Others shall not meet our
# stand-in for it: it stays within our reader.
PRIVATE = ("argparse.Namespace",)


def can_read_data() -> bool:
    """Tell whether torch reads files as data by such a list; 2.6 is the first that does."""
    return hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint")


class Inert:
    """Stand in for a class or function that a file names and that its weights don't need."""

    def __init__(self, *args: object) -> None:
        """Take whatever the file gives."""

    def __setstate__(self, state: object) -> None:
        """Take whatever the file gives."""


def history_method(owner: object, name: str) -> object:
    """Stand in for `getattr`: give a method of mmengine's log, and nothing else of anything.

    Raises:
        CheckpointError: something else was asked for.
    """
    history = TABLE[HISTORY]
    if owner is not history or name not in HISTORY_METHODS:
        raise CheckpointError("it asks for parts of objects by getattr, which no weights need")
    return Inert if history is Inert else getattr(history, name)


def empty_bytes(*content: object) -> bytes:
    """Stand in for `bytes`, which a file names for those of an empty array: for no others.

    Raises:
        CheckpointError: bytes that are not empty, which could be of any number.
    """
    if content:
        raise CheckpointError("it asks for memory by bytes, which no weights need")
    return b""


def numpy_table() -> dict[str, Any]:
    """Return what stands for numpy's names; where numpy is missing, a file's arrays are skipped."""
    try:
        import numpy  # noqa: F401
    except ImportError:
        names = ["numpy.dtype", "numpy.ndarray"]
        for core in ("core", "_core"):
            names += [f"numpy.{core}.multiarray.{name}" for name in ("_reconstruct", "scalar")]
        return dict.fromkeys(names, Inert)
    from . import numbers_only

    return numbers_only.TABLE


TABLE: dict[str, Any] = {
    # The log in a training checkpoint of OpenMMLab's.
    HISTORY: Inert,
    "builtins.getattr": history_method,
    "builtins.bytes": empty_bytes,
    **numpy_table(),
    # The meta information of a data set there comes from its config.
    "mmengine.config.config.ConfigDict": dict,
    **dict.fromkeys(PRIVATE, Inert),
}


def entries(without: Collection[str] = ()) -> list[Entry]:
    """Return the list as `torch.serialization.safe_globals` takes it, some names left out.

    Each entry has its name with it, even where that is the class's own: torch and others take
    entries off its list again, and take only those that are equal.
    """
    return [(value, name) for name, value in TABLE.items() if name not in without]


def allow() -> None:
    """Add the list to torch's own, so that `torch.load` reads mmengine's checkpoints as data.

    Nothing is replaced: a name that somebody has allowed already keeps its meaning.
    """
    if can_read_data():
        theirs = {name_of(entry) for entry in torch.serialization.get_safe_globals()}
        torch.serialization.add_safe_globals(entries(without={*PRIVATE, *theirs}))


def name_of(entry: Entry) -> str:
    """Return the name that an entry of torch's list is for."""
    if isinstance(entry, tuple):
        return str(entry[1])
    return f"{entry.__module__}.{entry.__qualname__}"
