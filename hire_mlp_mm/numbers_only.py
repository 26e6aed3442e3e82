"""Stand in for numpy where a weight file names it: arrays of numbers come out, and nothing else.

A file can tell numpy's own functions to build arrays of pointers, so they are not let in. Somebody
else may let them in for the whole process (`torch.serialization.add_safe_globals`), and torch then
takes numpy's function for one name and ours for another. So each function here takes what numpy's
others make, and makes what they take.

Only numpy is imported here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import CheckpointError, short

CODES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


def number_type(code: object, *_: object) -> np.dtype[Any]:
    """Stand in for `numpy.dtype`: give a type of numbers, in the machine's order of bytes."""
    # numpy's own, which, unlike a copy, pass over the state that a file gives: order of bytes,
    # size, whether there are pointers.
    if isinstance(code, str) and code in CODES:
        return np.dtype(code)
    raise CheckpointError(
        f"beside its weights it holds an array of {short(code, 40)!r}, expected numbers; save it "
        f"again without that array"
    )


def check_number_type(dtype: object) -> np.dtype[Any]:
    """Return numpy's own type for one that a file has given; refuse those that are no numbers."""
    if not isinstance(dtype, np.dtype):
        return number_type(dtype)
    number_type(dtype.str[1:])
    return np.dtype(dtype.str)  # with its order of bytes


class Numbers(np.ndarray):
    """Stand in for `numpy.ndarray`: filled by its state, copied and saved as a plain array."""

    def __new__(cls) -> Numbers:
        return super().__new__(cls, (0,))

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        dtype = check_number_type(dtype)
        values = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
        super().__setstate__((1, values.shape, values.dtype, False, values.tobytes()))

    def __reduce__(self) -> Any:
        return np.array(self).__reduce__()


def one_number(dtype: object, data: bytes) -> Any:
    """Stand in for `scalar`: make one number."""
    return np.frombuffer(data, check_number_type(dtype))[0]


# Torch fills only what is of a class in its list, and the functions above make these.
FILLED: tuple[type, ...] = (Numbers, *{type(np.dtype(code)) for code in CODES})
TABLE: dict[str, Any] = {
    "numpy.dtype": number_type,
    "numpy.ndarray": Numbers,
    **{f"numpy.{c}.multiarray._reconstruct": lambda *_: Numbers() for c in ("core", "_core")},
    **{f"numpy.{c}.multiarray.scalar": one_number for c in ("core", "_core")},
    **{f"{kind.__module__}.{kind.__qualname__}": kind for kind in FILLED},
}
