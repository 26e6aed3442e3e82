"""Look for the images that a COCO file names, and say what may keep them from being found."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress

from ...errors import DataError
from ..listing import absent_files, evenly
from ..tree import MIRRORED, read_header

SAMPLE = 200  # images that are opened for their EXIF


def faults_of_files(paths: Sequence[str], folder: str) -> Iterator[str]:
    """Find images that are not there, for a line that begins with the annotation file's name.

    Args:
        paths: of all images, each with its folder.
        folder: in which the file names of the annotation file are looked for.
    """
    absent = absent_files(paths)
    if not absent:
        return
    first = next(path for path in paths if path in absent)
    others = f" (and {len(absent) - 1} more of its {len(paths)} images)" if len(absent) > 1 else ""
    name = os.path.relpath(first, folder) if first.startswith(folder) else first
    yield f": {first} not found{others}{cure(name, first, folder)}"


def note_of_turned(paths: Sequence[str]) -> Iterator[str]:
    """Note images that their EXIF turns by half or mirrors, which no size shows.

    Tools for annotation differ in whether they heed it.
    """
    looked, turned = [paths[i] for i in evenly(len(paths), SAMPLE)], []
    for path in looked:
        with suppress(DataError):
            turned += [path] if read_header(path)[2] in MIRRORED else []
    if turned:
        yield (
            f": {len(turned)} images of {len(looked)} looked into, such as {turned[0]}, are read "
            "mirrored or turned by half, as their EXIF says; their boxes have to be for that, or "
            "set LoadImageFromFile(color_type='color_ignore_orientation')"
        )


def cure(name: str, path: str, folder: str) -> str:
    """Say what may be done about an image that is not there."""
    if folder and not os.path.isdir(folder):
        return f": there is no folder {folder}; see data_prefix.img"
    if "\\" in name:
        return ": write its file_name with / in the place of \\, relative to data_prefix.img"
    place, last = os.path.split(path)
    listed = os.listdir(place) if os.path.isdir(place) else []
    if alike := next((other for other in listed if plain(other) == plain(last)), None):
        return f": the folder has {alike!r}, which is spelt with other letters or bytes"
    if last != name and os.path.isfile(os.path.join(folder, last)):
        return f": {os.path.join(folder, last)} is there; data_prefix.img or the file_name is wrong"
    if os.path.isabs(name):
        return ": write its file_name relative to data_prefix.img"
    return ""


def plain(name: str) -> str:
    """Return a file's name without what systems differ in: cases, spaces, composed letters."""
    return unicodedata.normalize("NFC", name).casefold().strip()
