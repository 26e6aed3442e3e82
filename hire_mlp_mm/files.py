"""Write files that are whole or absent, and refuse images that end early: two file backends.

mmengine's configs name a backend by `backend_args=dict(backend=NAME)`.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from mmengine.fileio import LocalBackend, get, register_backend

from .disk import check_image
from .errors import UserError

WHOLE = "hire_mlp_mm.whole"  # for checkpoints
IMAGES = "hire_mlp_mm.images"  # for images and masks
CURE = "the checkpoints before are whole, and a resumed run goes on from the newest of them"


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file that has all of its data as soon as it has its name, even if the power goes.

    Raises:
        UserError: it cannot be written, for lack of space for instance; nothing is left of it.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        give_name(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise UserError(f"{path} cannot be written: {error.strerror}; {CURE}") from error


def give_name(part: Path, path: Path) -> None:
    """Give a whole file its name, once all of it is on the disk."""
    sync(part)
    os.replace(part, path)
    with contextlib.suppress(OSError):  # not every file system has this for a folder
        sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


class WholeFiles(LocalBackend):
    """Write local files that are never there in part under their own names."""

    def put(self, obj: bytes | memoryview, filepath: str | os.PathLike[str]) -> None:
        write_whole(filepath, bytes(obj) if isinstance(obj, memoryview) else obj)


class WholeImages(LocalBackend):
    """Read local images, and refuse those that end early."""

    def get(self, filepath: str | os.PathLike[str]) -> bytes:
        if "://" in str(filepath):  # of another backend, which mmengine finds by the beginning
            return get(filepath)
        content: bytes = super().get(filepath)
        check_image(content)
        return content


register_backend(WHOLE, WholeFiles, force=True)
register_backend(IMAGES, WholeImages, force=True)
