"""Predict on images and videos, one prediction after the other, whatever runs the model."""

from __future__ import annotations

import itertools
import os
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from ..data.palette import Colour
from ..errors import DataError, UserError, describe
from .inputs import Report, Shot, Source, find_inputs, read_shots

AHEAD = 8  # batches that are read ahead, so that images of one size find each other


@dataclass
class Prediction:
    """Hold what a model says of an image, or of a frame of a video.

    Attributes:
        source: where the image is from; see `inputs.Source`.
        frame: its number in a video, from 0 on; None for an image.
        image: (H, W, 3) uint8, RGB.
        sample: the host's data sample, on the CPU; of an exported file what `Runtime.finish`
            gives.
        results: of a detector a list of COCO's results, the best first; of a segmentor the labels
            (H, W) of uint8 or uint16; of a classifier the five best, a dict with `label`, `class`
            and `score` each.
    """

    source: Source
    frame: int | None
    image: np.ndarray
    sample: Any
    results: Any


@dataclass
class Prepared:
    """Hold a shot that is ready for the model.

    Attributes:
        shot: what was read.
        image: (H, W, 3) uint8, RGB.
        data: what the model takes.
        shape: of the image in it, (3, h, w) or (1, 3, h, w).
    """

    shot: Shot
    image: np.ndarray
    data: Any
    shape: tuple[int, ...]


class BasePredictor(ABC):
    """Predict with a trained detector, segmentor or classifier.

    Only images of one size share a batch, and no image is padded for another's sake, so that what
    is predicted of an image does not depend on the others.

    Attributes:
        task: `detection`, `segmentation` or `classification`.
        classes: names, in the order of the labels.
        palette: a colour (red, green, blue) for each class.
        origin: the files and the device, for a line.
    """

    task: str
    classes: list[str]
    palette: list[Colour]
    origin: str
    loader: Callable[[dict[str, Any]], Any]

    def __init__(self, batch_size: int) -> None:
        """Take the number of images that are predicted together, or raise UserError."""
        if batch_size < 1:
            raise UserError(f"batch size {batch_size}: expected 1 or more")
        self.batch_size = batch_size

    def __call__(
        self, *inputs: str | os.PathLike[str], report: Report | None = None
    ) -> Iterator[Prediction]:
        """Yield the predictions of images, folders, quoted patterns and videos, in their order.

        Args:
            inputs: paths; a folder stands for the images and videos in it and its folders.
            report: is told, by an error, of each image that cannot be read or predicted, which is
                then passed over; without it, the error is raised.

        Raises:
            UserError: an input is not there.
            DataError: an image cannot be read or predicted, and there is no `report`.
        """
        return self.predict(find_inputs(inputs).sources, report)

    def predict(
        self, sources: Iterable[Source], report: Report | None = None
    ) -> Iterator[Prediction]:
        """Yield the predictions of sources that `find_inputs` has found; see `__call__`."""
        report = report or raise_it
        shots = read_shots(sources, self.loader, report)
        window = 1 if self.batch_size == 1 else AHEAD * self.batch_size
        while some := list(itertools.islice(shots, window)):
            prepared = [one for shot in some if (one := self.try_to_prepare(shot, report))]
            # In this order the predictions come out, whatever their sizes.
            found = {id(one.shot): given for one, given in self.run(prepared, report)}
            for one in prepared:
                if id(one.shot) in found:
                    sample = found.pop(id(one.shot))
                    results = self.results_of(sample)
                    yield Prediction(one.shot.source, one.shot.frame, one.image, sample, results)

    def try_to_prepare(self, shot: Shot, report: Report) -> Prepared | None:
        """Prepare a shot, or report why that cannot be done."""
        try:
            return self.prepare(shot)
        except Exception as error:  # whatever a step raises
            height, width = shot.results["ori_shape"]
            size = f"an image of {width} x {height} pixels cannot be prepared"
            report(DataError(f"{shot.label}: {size}: {describe(error)}"))
            return None

    def run(self, prepared: list[Prepared], report: Report) -> Iterator[tuple[Prepared, Any]]:
        """Yield (what was prepared, its sample), batch by batch of one size."""
        groups: dict[tuple[Any, ...], list[Prepared]] = defaultdict(list)
        for one in prepared:
            # A segmentor resizes its maps to the first image's original size.
            groups[tuple(one.shape), one.image.shape].append(one)
        for group in groups.values():
            for start in range(0, len(group), self.batch_size):
                yield from self.run_batch(group[start : start + self.batch_size], report)

    def run_batch(self, batch: list[Prepared], report: Report) -> Iterator[tuple[Prepared, Any]]:
        """Yield the samples of a batch; where it fails, of each image by itself."""
        try:
            samples = self.forward(batch)
        except UserError:  # not of these images
            raise
        except Exception as error:  # whatever the model raises
            if len(batch) == 1:
                report(failure(batch[0], error))
            else:  # one may be at fault, or all may be too large together
                for one in batch:
                    yield from self.run_batch([one], report)
        else:
            yield from zip(batch, samples, strict=True)

    @abstractmethod
    def prepare(self, shot: Shot) -> Prepared:
        """Prepare a shot for the model; raises whatever it likes."""

    @abstractmethod
    def forward(self, batch: list[Prepared]) -> list[Any]:
        """Return the samples of a batch, what is wanted of them; raises whatever it likes."""

    @abstractmethod
    def results_of(self, sample: Any) -> Any:
        """Return the plain results of a sample."""

    @abstractmethod
    def draw(self, found: Prediction) -> np.ndarray:
        """Draw a prediction into a copy of its image: (H, W, 3) uint8, RGB."""


def raise_it(error: DataError) -> NoReturn:
    """Raise an error."""
    raise error


def failure(one: Prepared, error: Exception) -> DataError:
    """Say that the model fails on an image."""
    height, width = one.shape[-2:]
    line = f"{one.shot.label}: the model failed on it ({width} x {height} pixels)"
    return DataError(f"{line}: {describe(error)}")
