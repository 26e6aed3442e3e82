"""List what a weight file may name besides tensors, and what stands for it when the file is read.

Torch reads a file as data: it looks up each class or function that the file names in a list, and
refuses those that are not there. All readers of this package use the list below. Where mmengine is
installed, its own log stands there (`hire_mlp_mm.loading`).

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
# The authors' training script saved its command line in their files. What stands for it here is for
# our reader alone.
PRIVATE = ("argparse.Namespace",)


def can_read_data() -> bool:
    """Tell whether torch reads files as data by such a list; 2.6 is the first that does."""
    return hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint")


class Inert:
    """Stand in for a class or function that a file names and that its weights don't need."""

    def __init__(self, *args: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def history_method(owner: object, name: str) -> object:
    """Stand in for `getattr`: give a method of mmengine's log, refuse anything else."""
    history = TABLE[HISTORY]
    if owner is not history or name not in HISTORY_METHODS:
        raise CheckpointError("it asks for parts of objects by getattr, which no weights need")
    return Inert if history is Inert else getattr(history, name)


def empty_bytes(*content: object) -> bytes:
    """Stand in for `bytes`, as an empty array names it; others could be of any length."""
    if content:
        raise CheckpointError("it asks for memory by bytes, which no weights need")
    return b""


try:
    from .numbers_only import TABLE as NUMPY
except ImportError:  # without numpy, a file's arrays are skipped
    NAMES = ("_reconstruct", "scalar")
    MULTIARRAY = [f"numpy.{core}.multiarray.{n}" for core in ("core", "_core") for n in NAMES]
    NUMPY = dict.fromkeys(["numpy.dtype", "numpy.ndarray", *MULTIARRAY], Inert)

TABLE: dict[str, Any] = {
    # The log in a training checkpoint of OpenMMLab's.
    HISTORY: Inert,
    "builtins.getattr": history_method,
    "builtins.bytes": empty_bytes,
    **NUMPY,
    # The meta information of a data set there, which comes from its config.
    "mmengine.config.config.ConfigDict": dict,
    **dict.fromkeys(PRIVATE, Inert),
}


def entries(without: Collection[str] = ()) -> list[Entry]:
    """Return the list as `torch.serialization.safe_globals` takes it, some names left out.

    Each entry says its name, even where that is the class's own: others put bare classes on torch's
    list for a while, and taking those off again takes off all that equals them.
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
