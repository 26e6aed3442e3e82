"""Predict on images and videos, and write pictures and results into a folder."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..disk import check_new_folder
from ..errors import DataError, UserError
from .base import BasePredictor, Prediction
from .inputs import Report, Source, count_shots, describe_passed, find_inputs, is_exported
from .outputs import Boxes, Masks, Pictures, Table

Say = Callable[[str], None]
Track = Callable[[Iterable[Prediction], int], Iterable[Prediction]]


@dataclass
class Outcome:
    """Hold what came of a prediction.

    Attributes:
        folder: where the files are.
        images: how many images, and frames of videos, were predicted.
        faults: a line for each that could not be.
        boxes: of a detector, how many of each class were found; else None.
        seconds: from the first image to the last, without the loading of the model.
    """

    folder: Path
    images: int = 0
    faults: list[str] = field(default_factory=list)
    boxes: Counter[str] | None = None
    seconds: float = 0.0

    def report_to(self, say: Say) -> Report:
        """Return what notes the error of an image that is passed over, and says it."""

        def report(error: DataError) -> None:
            self.faults.append(str(error))
            say(str(error))

        return report


def predict(
    checkpoint: str | os.PathLike[str],
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    config: str | os.PathLike[str] | None = None,
    pictures: bool = True,
    say: Say = lambda line: None,
    track: Track = lambda found, total: found,
    **options: Any,
) -> Outcome:
    """Predict on images and videos, and write pictures and results into a new folder.

    A detector gives `predictions.json`, results in COCO's format, and `images.json`, the images
    that it numbers; a segmentor a PNG file with a label in each pixel for each image, in `masks`;
    a classifier `predictions.csv`. An image that cannot be read is passed over. What was predicted
    until an error or Ctrl-C is there, in whole files.

    Args:
        checkpoint: see `Predictor`; or an exported `.onnx` file, see `ExportedPredictor`.
        inputs: images, folders, quoted patterns, videos; one or several.
        out: a folder, new or empty.
        config: see `Predictor`.
        pictures: draw the predictions into copies of the images.
        say: is told, in lines, what was taken, passed over, and cannot be read.
        track: gets the predictions and how many are expected, and gives them on, as a progress bar
            does.
        options: see `Predictor`.

    Raises:
        UserError: what can be put right, before anything is written: an argument, the folder, the
            checkpoint, the config; or the disk is full.

    Examples:
        >>> done = hire_mlp_mm.predict("work_dirs/mine", "photographs", "predicted")
        >>> print(done.images, done.faults)
    """
    folder = Path(out)
    check_new_folder(folder)
    found = find_inputs([inputs] if isinstance(inputs, (str, os.PathLike)) else inputs)
    if found.passed_over:
        say(describe_passed(found.passed_over))
    predictor = open_predictor(checkpoint, config, **options)
    say(predictor.origin)
    outcome = Outcome(folder)
    with ExitStack() as closing:
        writer = closing.enter_context(contextlib.closing(writer_for(predictor, folder)))
        drawn = closing.enter_context(Pictures(folder)) if pictures else None
        for one in predict_all(predictor, found.sources, outcome, say, track):
            writer.add(one)
            if drawn:
                drawn.add(one, predictor.draw(one))
        outcome.boxes = writer.count() if isinstance(writer, Boxes) else None
    return outcome


def predict_all(
    predictor: BasePredictor, sources: list[Source], outcome: Outcome, say: Say, track: Track
) -> Iterator[Prediction]:
    """Yield the predictions of sources; say what fails, and note what comes of it all."""
    total = count_shots(sources)
    start = time.perf_counter()
    for one in track(predictor.predict(sources, outcome.report_to(say)), total):
        yield one
        outcome.images += 1
    outcome.seconds = time.perf_counter() - start


def open_predictor(
    checkpoint: str | os.PathLike[str], config: str | os.PathLike[str] | None, **options: Any
) -> BasePredictor:
    """Open a checkpoint, or an exported file, for which nothing of OpenMMLab is imported."""
    if is_exported(checkpoint):
        return open_exported(os.fspath(checkpoint), config, **options)
    try:
        from .predictor import Predictor
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("hire_mlp_mm"):  # a fault of ours
            raise
        raise UserError(
            f"{error.name} is not installed, and {os.fspath(checkpoint)} needs it; 'hire-mlp "
            f"doctor' says what is missing, and exported .onnx files need nothing of it"
        ) from error
    if options.pop("engine", None):
        raise UserError(f"{os.fspath(checkpoint)}: --engine is for .onnx files; leave it out")
    return Predictor(checkpoint, config, **options)


def open_exported(
    name: str,
    config: str | os.PathLike[str] | None = None,
    *,
    device: str | None = None,
    fused: bool = False,
    cfg_options: dict[str, Any] | None = None,
    **options: Any,
) -> BasePredictor:
    """Open an exported file, or raise UserError for what checkpoints alone take."""
    from .exported import ExportedPredictor

    if not name.endswith(".onnx"):
        raise UserError(f"{name} is of torch.export, which predict does not run; export as .onnx")
    for option, value in (
        (f"the config {config}", config),
        ("--fuse", fused),
        ("--cfg-options", cfg_options),
        (f"--device {device}", device not in (None, "cpu")),
    ):
        if value:
            line = f"{name} is exported, as a whole, and runs on the CPU as it is"
            raise UserError(f"{line}: leave out {option}, or name the checkpoint")
    return ExportedPredictor(name, **options)


def writer_for(predictor: BasePredictor, folder: Path) -> Boxes | Masks | Table:
    """Return what writes the results of a model."""
    if predictor.task == "detection":
        return Boxes(folder, predictor.classes)
    if predictor.task == "segmentation":
        return Masks(folder, predictor.classes, predictor.palette)
    return Table(folder)
