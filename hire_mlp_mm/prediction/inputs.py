"""Find the images and videos that a person names, and read them."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..data.listing import is_image
from ..data.tree import left_behind
from ..disk import check_image
from ..errors import DataError, UserError, describe

VIDEOS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv")
FPS = 25.0  # of a video that does not say it

Report = Callable[[DataError], None]


def is_exported(model: str | os.PathLike[str]) -> bool:
    """Tell by its suffix whether a model is an exported file, and no checkpoint."""
    return os.fspath(model).endswith((".onnx", ".pt2"))


@dataclass(frozen=True)
class Source:
    """Name an image or a video.

    Attributes:
        path: the file.
        name: the path from the folder that holds all inputs, with `/` between folders; no two
            sources have the same.
    """

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        """Tell by its suffix whether the file is a video."""
        return self.path.suffix.lower() in VIDEOS


@dataclass
class Inputs:
    """Hold what was found.

    Attributes:
        sources: the images and videos, in the order of the inputs, a folder's by name.
        passed_over: how many files of the folders are neither, by suffix.
    """

    sources: list[Source]
    passed_over: Counter[str] = field(default_factory=Counter)


def find_inputs(inputs: Sequence[str | os.PathLike[str]]) -> Inputs:
    """Find the images and videos of files, folders (with the folders in them) and globs.

    Raises:
        UserError: an input is not there, or there is nothing in any of them.
    """
    passed_over: Counter[str] = Counter()
    paths: dict[str, None] = {}  # a file that is named twice is predicted once
    for one in inputs:
        for path in matches(os.fspath(one)):
            paths.update(dict.fromkeys(walk(path, passed_over) if os.path.isdir(path) else [path]))
    if not paths:
        more = f"; {describe_passed(passed_over)}" if passed_over else ""
        raise UserError(f"no images or videos in {', '.join(map(str, inputs))}{more}")
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    named = [Source(Path(path), Path(path).relative_to(root).as_posix()) for path in paths]
    return Inputs(named, passed_over)


def matches(name: str) -> list[str]:
    """List the absolute paths that an input names, or raise UserError where there is none."""
    found = [name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True))
    if not found:
        kind = "no file matches" if glob.has_magic(name) else "not found:"
        raise UserError(f"{kind} {name}; expected an image, a video, a folder or a quoted pattern")
    return [os.path.abspath(path) for path in found]


def walk(folder: str, passed_over: Counter[str]) -> Iterator[str]:
    """Yield images and videos of a folder and the folders in it; count what is neither."""
    seen: set[str] = set()  # links may lead round in circles
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        left = [one for one in folders if left_behind(one)]
        passed_over.update(str(left_behind(one)) for one in left)
        folders[:] = [] if real in seen else sorted(set(folders) - set(left))
        for file in [] if real in seen else sorted(files):
            kind, suffix = left_behind(file), os.path.splitext(file)[1].lower()
            if kind is None and (is_image(file) or suffix in VIDEOS):
                yield os.path.join(place, file)
            else:
                passed_over[kind or suffix or "no suffix"] += 1
        seen.add(real)


def describe_passed(passed_over: Counter[str]) -> str:
    """Say in a line what was passed over."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in passed_over.items())
    return f"passed over what is no image or video: {kinds}"


# Reading ----------------------------------------------------------------------------------------


@dataclass
class Shot:
    """Hold an image that was read, or a frame of a video.

    Attributes:
        source: where it is from.
        frame: its number in a video, from 0 on; None for an image.
        results: what the first step of a test pipeline gives: `img` and its shapes.
    """

    source: Source
    frame: int | None
    results: dict[str, Any]

    @property
    def label(self) -> str:
        """The file, and the frame of a video, for a line."""
        return f"{self.source.path}{'' if self.frame is None else f', frame {self.frame}'}"


def load_image(results: dict[str, Any]) -> dict[str, Any]:
    """Load an image as mmcv's `LoadImageFromFile`: 8 bits, BGR, turned as its EXIF says."""
    content = Path(results["img_path"]).read_bytes()
    check_image(content)
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None, "the image cannot be decoded"
    return dict(results, img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])


def read_shots(sources: Iterable[Source], loader: Any, report: Report) -> Iterator[Shot]:
    """Read images by a pipeline's loader, and the frames of videos; report what cannot be read."""
    for source in sources:
        if source.is_video:
            yield from read_frames(source, report)
            continue
        try:
            results = loader(dict(img_path=str(source.path), img_id=0))
            image = results["img"]
            if image.ndim not in (2, 3):
                raise DataError(f"the image is read with the shape {image.shape}")
        except Exception as error:  # whatever a decoder raises
            report(unreadable(source, error))
        else:
            yield Shot(source, None, results)


def unreadable(source: Source, error: Exception) -> DataError:
    """Say that an image cannot be read."""
    if isinstance(error, DataError):
        return DataError(f"{source.path}: {error}")
    if isinstance(error, OSError) and error.strerror:
        return DataError(f"{source.path} cannot be read: {error.strerror}")
    # The loaders' assertions have nothing more to say.
    more = "" if isinstance(error, AssertionError) else f" ({describe(error)})"
    return DataError(
        f"{source.path}: the image cannot be decoded: truncated, damaged, too large or of an "
        f"unknown format{more}"
    )


def open_video(source: Source) -> cv2.VideoCapture:
    """Open a video by OpenCV, or raise DataError."""
    video = cv2.VideoCapture(str(source.path))
    if not video.isOpened():
        raise DataError(
            f"{source.path}: the video cannot be opened: damaged or of an unknown codec"
        )
    return video


def read_frames(source: Source, report: Report) -> Iterator[Shot]:
    """Read the frames of a video; report one that cannot be opened, or ends early."""
    try:
        video = open_video(source)
    except DataError as error:
        report(error)
        return
    count, expected = 0, int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    while (image := video.read()[1]) is not None:
        shape = image.shape[:2]
        results = dict(img=image, img_path=str(source.path), img_id=0)
        yield Shot(source, count, dict(results, img_shape=shape, ori_shape=shape))
        count += 1
    if count < expected or not count:
        report(DataError(f"{source.path}: {count} of {expected} frames can be read"))


def count_shots(sources: Iterable[Source]) -> int:
    """Count images and frames, as far as the videos say how many they have."""
    count = 0
    for source in sources:
        try:
            video = open_video(source) if source.is_video else None
        except DataError:  # which is reported when its turn comes
            video = None
        count += max(int(video.get(cv2.CAP_PROP_FRAME_COUNT)), 0) if video else 1
    return count


def fps_of(source: Source) -> float:
    """Return the frames per second that a video says, or `FPS`."""
    fps = open_video(source).get(cv2.CAP_PROP_FPS)
    return fps if np.isfinite(fps) and fps > 0 else FPS
