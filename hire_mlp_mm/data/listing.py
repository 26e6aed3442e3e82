"""List files as the hosts do, and see which are missing, without a question for each of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from .tree import IMAGES, suffix_of

# Images of whatever program, besides those that are understood here.
OTHER_IMAGES = frozenset(
    (".jpe", ".gif", ".pbm", ".jp2", ".avif", ".heic", ".heif", ".dng", ".exr", ".hdr")
)


def files_under(folder: str | os.PathLike[str]) -> Iterator[str]:
    """Yield the files in a folder and the folders within; as the hosts, none whose name is hidden.

    Folders whose names are hidden are among them, and those that links lead to.
    """
    for place, _, names in os.walk(folder, followlinks=True):
        yield from (os.path.join(place, name) for name in names if not name.startswith("."))


def absent_files(paths: Iterable[str]) -> set[str]:
    """Return the files that are not there; each folder is read once."""
    names_of: dict[str, set[str]] = {}
    absent = set()
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in names_of:
            is_folder = os.path.isdir(folder or ".")
            names_of[folder] = set(os.listdir(folder or ".")) if is_folder else set()
        if name not in names_of[folder]:
            absent.add(path)
    return absent


def is_image(path: str) -> bool:
    """Tell whether a file is an image by its suffix, of whatever reader."""
    return suffix_of(path) in IMAGES | OTHER_IMAGES


def after(source: str, path: str) -> str:
    """Return a path for a line that begins with `source`, of which it may be the beginning."""
    within = path.removeprefix(source.rstrip(os.sep))
    return within if within.startswith(os.sep) and within != path else f": {path}"


def evenly(count: int, most: int) -> list[int]:
    """Return at most `most` of the numbers below `count`, evenly spread."""
    most = min(most, count)
    return [i * count // most for i in range(most)]
