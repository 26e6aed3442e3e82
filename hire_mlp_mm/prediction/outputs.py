"""Write predictions into a new folder: pictures, videos, and results for machines.

    DIR/pictures/...      the images, and the videos, with the predictions drawn into them
    DIR/predictions.json  of a detector: results in COCO's format
    DIR/images.json       the images and the categories that predictions.json numbers
    DIR/masks/...         of a segmentor: PNG files with the label in each pixel
    DIR/classes.csv       of a segmentor: the name and the colour of each label
    DIR/predictions.csv   of a classifier: the five best classes of each image

A file has its name once all of it is written.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from PIL import Image

from ..data.palette import Colour
from ..errors import UserError
from .base import Prediction
from .inputs import Source, fps_of

KEPT = (".jpg", ".jpeg", ".png")  # other pictures become PNG
CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".avi": "MJPG"}  # others become MP4


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Give a path to write to, which becomes `path` when all is written, and else is removed.

    Raises:
        UserError: it cannot be written, for lack of space for instance.
    """
    part = path.with_name(f".part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def save(path: Path, content: bytes) -> None:
    """Write a file that is whole or absent, or raise UserError."""
    with writing(path) as part:
        part.write_bytes(content)


class Names:
    """Name the files of one folder after the sources, no two alike."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.taken: set[str] = set()

    def path(self, name: str, suffix: str) -> Path:
        """Return a path for a source: its name with another suffix, or after its own suffix."""
        stem = str(PurePosixPath(name).with_suffix(""))
        stems = itertools.chain([stem, name], (f"{name}.{i}" for i in itertools.count(2)))
        free = next(s for one in stems if (s := f"{one}{suffix}").lower() not in self.taken)
        self.taken.add(free.lower())  # some file systems know no capitals
        return self.folder / free


class Pictures:
    """Write the drawn images, and the drawn frames as videos again."""

    def __init__(self, folder: Path) -> None:
        self.names = Names(folder / "pictures")
        self.source: Source | None = None  # the video that is being written
        self.video: Any = None
        self.open = contextlib.ExitStack()

    def __enter__(self) -> Pictures:
        return self

    def __exit__(self, *error: Any) -> None:
        self.open.__exit__(*error)  # half a video goes

    def add(self, found: Prediction, picture: np.ndarray) -> None:
        """Write a picture (H, W, 3), RGB."""
        if found.source != self.source:  # the video before is whole
            self.source = None
            self.open.close()
        picture = np.ascontiguousarray(picture[..., ::-1])
        suffix = found.source.path.suffix
        if found.frame is None:
            kept = suffix if suffix.lower() in KEPT else ".png"
            _, content = cv2.imencode(kept, picture)
            save(self.names.path(found.source.name, kept), content.tobytes())
            return
        if self.source is None:
            self.begin(found.source, picture)
        self.video.write(picture)

    def begin(self, source: Source, picture: np.ndarray) -> None:
        """Open the video that a source becomes."""
        kept = source.path.suffix if source.path.suffix.lower() in CODECS else ".mp4"
        path = self.names.path(source.name, kept)
        part = self.open.enter_context(writing(path))
        size = (picture.shape[1], picture.shape[0])
        code = cv2.VideoWriter.fourcc(*CODECS[kept.lower()])
        self.source, self.video = source, cv2.VideoWriter(str(part), code, fps_of(source), size)
        self.open.callback(self.video.release)
        if not self.video.isOpened():
            raise UserError(f"{path}: OpenCV cannot write such a video; predict it --no-pictures")


# Results ----------------------------------------------------------------------------------------


class Boxes:
    """Write a detector's results: a list in COCO's format, and the images that it numbers.

    `COCO("images.json").loadRes("predictions.json")` of pycocotools reads them.
    """

    def __init__(self, folder: Path, classes: list[str]) -> None:
        self.folder, self.results, self.images = folder, list[Any](), list[Any]()
        self.categories = [dict(id=i, name=name) for i, name in enumerate(classes, start=1)]

    def add(self, found: Prediction) -> None:
        """Note the results of an image."""
        height, width = found.image.shape[:2]
        of: dict[str, Any] = dict(file_name=found.source.name)
        of.update({} if found.frame is None else dict(frame=found.frame))
        image_id = len(self.images) + 1
        self.images.append(dict(id=image_id, width=width, height=height, **of))
        self.results += [dict(image_id=image_id, **of, **result) for result in found.results]

    def count(self) -> Counter[str]:
        """Count the boxes of each class that were noted."""
        labels = Counter(result["category_id"] for result in self.results)
        return Counter({str(one["name"]): labels[one["id"]] for one in self.categories})

    def close(self) -> None:
        """Write what was noted."""
        images = dict(images=self.images, annotations=[], categories=self.categories)
        for name, content in (("images.json", images), ("predictions.json", self.results)):
            save(self.folder / name, json.dumps(content, ensure_ascii=False).encode())


class Masks:
    """Write a segmentor's results: the labels as PNG files, and what they mean."""

    def __init__(self, folder: Path, classes: list[str], palette: list[Colour]) -> None:
        self.folder, self.classes, self.palette = folder, classes, palette
        self.names = Names(folder / "masks")

    def add(self, found: Prediction) -> None:
        """Write the labels of an image."""
        name = found.source.name
        if found.frame is not None:  # a video is a folder of masks
            name = f"{name}/{found.frame:06d}.png"
        image = Image.fromarray(found.results)
        if found.results.dtype == np.uint8:  # other files cannot hold a palette
            image.putpalette([value for colour in self.palette[:256] for value in colour])
        content = io.BytesIO()
        image.save(content, format="PNG")
        save(self.names.path(name, ".png"), content.getvalue())

    def close(self) -> None:
        """Write what the labels mean."""
        rows = [
            [label, name, *colour]
            for label, (name, colour) in enumerate(zip(self.classes, self.palette, strict=False))
        ]
        save_rows(self.folder / "classes.csv", ["label", "name", "r", "g", "b"], rows)


class Table:
    """Write a classifier's results: a row for each of the best classes of each image."""

    HEAD = ("file", "frame", "rank", "label", "class", "score")

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows = folder, list[Any]()

    def add(self, found: Prediction) -> None:
        """Note the classes of an image."""
        frame = "" if found.frame is None else found.frame
        for rank, result in enumerate(found.results, start=1):
            self.rows.append([found.source.name, frame, rank, *result.values()])

    def close(self) -> None:
        """Write what was noted."""
        save_rows(self.folder / "predictions.csv", self.HEAD, self.rows)


def save_rows(path: Path, head: Sequence[str], rows: list[Any]) -> None:
    """Write a table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *rows])
    save(path, text.getvalue().encode())
