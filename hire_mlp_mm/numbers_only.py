"""Stand in for numpy where a weight file names it: arrays of numbers come out, and nothing else.

numpy's own functions can be told by a file to build arrays of pointers, so they are not let in.
Others may let them in later (`torch.serialization.add_safe_globals`), for all of a process; then
torch takes theirs of one name and ours of another. Each function here therefore takes what numpy's
others make, and makes what they take.

Only numpy is imported here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import CheckpointError, short

CODES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


def number_type(code: object, *_: object) -> np.dtype[Any]:
    """Stand in for `numpy.dtype`: give a type of numbers, in the machine's order of bytes.

    These are numpy's own, of which there is one each: they pass over the state that a file gives
    (byte order, size, whether there are pointers), which a copy of them would take.

    Raises:
        CheckpointError: not a number's type.
    """
    if isinstance(code, str) and code in CODES:
        return np.dtype(code)
    raise CheckpointError(
        f"beside its weights it holds an array of {short(code, 40)!r}, expected numbers; save it "
        f"again without that array"
    )


def check_number_type(dtype: object) -> np.dtype[Any]:
    """Return numpy's own type for one that a file has given, which has to be one of numbers.

    Raises:
        CheckpointError: it is another.
    """
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


def empty_numbers(*_: object) -> Numbers:
    """Stand in for `_reconstruct`: make an array to be filled."""
    return Numbers()


def one_number(dtype: object, data: bytes) -> Any:
    """Stand in for `scalar`: make one number."""
    return np.frombuffer(data, check_number_type(dtype))[0]


def name_of(kind: type) -> str:
    """Return the name by which a pickle calls a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


TABLE: dict[str, Any] = {
    "numpy.dtype": number_type,
    "numpy.ndarray": Numbers,
    **{f"numpy.{c}.multiarray._reconstruct": empty_numbers for c in ("core", "_core")},
    **{f"numpy.{c}.multiarray.scalar": one_number for c in ("core", "_core")},
    # Torch fills only what is of a class in its list, and the functions above make these.
    name_of(Numbers): Numbers,
    **{name_of(type(np.dtype(code))): type(np.dtype(code)) for code in CODES},
}
