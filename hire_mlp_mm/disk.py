"""Check folders that are to be written, and images that were read, with the standard library."""

from __future__ import annotations

import os
import re

from .errors import DataError, UserError

JPEG, JPEG_END = b"\xff\xd8", b"\xff\xd9"
# Within a scan FF stands before 00, and before D0 to D7 where it starts anew.
JPEG_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")


def check_new_folder(folder: str | os.PathLike[str], option: str = "") -> None:
    """Raise UserError, which begins with an option if one is named, unless a folder is new."""
    is_folder = os.path.isdir(folder)
    if os.path.lexists(folder) and not (is_folder and not os.listdir(folder)):
        what = "is not empty" if is_folder else "is a file"
        name = f"{option} {folder}".strip()
        raise UserError(f"{name} {what}; name a new folder, for nothing is overwritten")


def check_image(content: bytes) -> None:
    """Raise DataError where the bytes of an image are none, or a JPEG that ends early.

    OpenCV before 4.11 decodes the beginning of such a JPEG, and fills the rest with grey.
    """
    if not content:
        raise DataError("the file is empty")
    # Most files end with the marker. One that is cut off where its header has the same bytes has
    # nothing to decode.
    if content.startswith(JPEG) and not (content.endswith(JPEG_END) or has_end(content)):
        raise DataError("the JPEG is truncated")


def has_end(jpeg: bytes) -> bool:
    """Tell whether a JPEG's segments, thumbnails left aside, go on to its end marker."""
    position = len(JPEG)
    while marker := JPEG_MARKER.search(jpeg, position):
        if marker[1] == b"\xd9":
            return True
        length = jpeg[marker.end() : marker.end() + 2]
        position = marker.end() + int.from_bytes(length, "big")
    return False
