"""Explain the decisions of a model, or measure its receptive fields, and write pictures."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from ..bench.candidates import PEERS, build_peer
from ..disk import check_new_folder
from ..engine.quiet import quiet
from ..errors import UserError
from ..prediction.base import raise_it
from ..prediction.inputs import (
    Report,
    Source,
    describe_passed,
    find_inputs,
    is_exported,
    read_shots,
)
from ..prediction.outputs import Pictures, save_rows
from ..prediction.pictures import as_rgb
from ..prediction.predictor import Predictor
from ..prediction.run import Outcome, Say, Track, predict_all
from .fields import CALIBRATED, Field, calibrate, receptive_fields
from .heat import Explainer, backbone_of

SIDE = 448  # of the photographs whose pixels a receptive field has: 14 tokens at stride 32
Inputs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass
class Comparison(Outcome):
    """Hold what came of a comparison of receptive fields; see `Outcome`.

    Attributes:
        fields: of each network's maps, by its name.
    """

    fields: dict[str, list[Field]] = field(default_factory=dict)


def explain(
    checkpoint: str | os.PathLike[str],
    inputs: Inputs,
    out: str | os.PathLike[str],
    *,
    say: Say = lambda line: None,
    track: Track = lambda found, total: found,
    **options: Any,
) -> Outcome:
    """Explain what a model finds in images: pictures with heat maps, in a new folder.

    Each picture is the image and, beside it, a panel for each class that is found; see `Explainer`.
    An image that cannot be read is passed over.

    Args:
        checkpoint: see `Predictor`.
        inputs: images, folders, quoted patterns; one or several.
        out: a folder, new or empty; the pictures are in its `pictures`.
        say: is told, in lines, what was taken, passed over, and cannot be read.
        track: gets the predictions and how many are expected, and gives them on.
        options: see `Explainer`.

    Raises:
        UserError: what can be put right, before anything is written.

    Examples:
        >>> done = hire_mlp_mm.explain.explain("work_dirs/mine", "photographs", "explained")
    """
    folder, sources = begin(checkpoint, inputs, out, say)
    explainer = Explainer(checkpoint, **options)
    say(explainer.origin)
    outcome = Outcome(folder)
    with Pictures(folder) as pictures:
        for one in predict_all(explainer, sources, outcome, say, track):
            pictures.add(one, explainer.draw(one))
    return outcome


class Headless(Predictor):
    """Prepare images for a backbone, whatever heads come after it."""

    def check_head(self) -> None:
        """Leave the heads alone: nothing is predicted."""


def compare_fields(
    checkpoint: str | os.PathLike[str],
    inputs: Inputs,
    out: str | os.PathLike[str],
    *,
    against: Sequence[str] = (),
    say: Say = lambda line: None,
    **options: Any,
) -> Comparison:
    """Measure the receptive fields of a trained backbone, and of others: a plot and a table.

    The photographs' middles, 448 pixels a side, go through the backbone of each network; see
    `receptive_fields`. An image that cannot be read is passed over.

    Args:
        checkpoint, inputs, say: see `explain`.
        out: a folder, new or empty, for `fields.png` and `fields.csv`.
        against: other networks: checkpoints or work dirs, or names of `bench.PEERS` such as
            `swin-t`, with random weights; see `calibrate` in fields.py.
        options: see `Predictor`.

    Raises:
        UserError: what can be put right, before anything is written; or no image can be read.
    """
    from .plots import plot_fields

    folder, sources = begin(checkpoint, inputs, out, say)
    for name in against:
        if name not in PEERS and not os.path.exists(name):
            expected = f"a checkpoint, a work dir, or one of {', '.join(PEERS)}"
            raise UserError(f"--against {name}: expected {expected}")
    first = Headless(checkpoint, **options)
    done = Comparison(folder)
    sources = readable(first, sources, done.report_to(say))
    networks = {Path(first.config).stem: (first, backbone_of(first).requires_grad_(False))}
    for name in against:
        if name in PEERS:
            networks[f"{name}, random weights"] = (first, peer_of(name, first, sources))
        else:
            other = Headless(name, device=first.device)
            key = unlike(Path(other.config).stem, networks)
            networks[key] = (other, backbone_of(other).requires_grad_(False))
    start = time.perf_counter()
    for name, (predictor, backbone) in networks.items():
        done.fields[name] = receptive_fields(backbone, middles(predictor, sources))
        for one in done.fields[name]:
            half, most = one.side(0.5), one.side(0.9)
            say(f"{name}, stride {one.stride}: half within {half} pixels, 90% within {most}")
    done.images, done.seconds = len(sources), time.perf_counter() - start
    folder.mkdir(parents=True, exist_ok=True)
    plot_fields(done.fields, folder / "fields.png")
    rows = [
        [name, one.stride, one.side(0.5), one.side(0.9)]
        for name, fields in done.fields.items()
        for one in fields
    ]
    save_rows(folder / "fields.csv", ["network", "stride", "half_px", "90%_px"], rows)
    return done


def begin(
    checkpoint: str | os.PathLike[str], inputs: Inputs, out: str | os.PathLike[str], say: Say
) -> tuple[Path, list[Source]]:
    """Check what can be checked without a model; return the new folder and the images."""
    folder = Path(out)
    check_new_folder(folder)
    if is_exported(checkpoint):
        raise UserError(f"{checkpoint} is exported and has no gradients; name the checkpoint")
    found = find_inputs([inputs] if isinstance(inputs, (str, os.PathLike)) else inputs)
    for source in found.sources:
        if source.is_video:
            raise UserError(f"{source.path} is a video; expected images, such as frames of it")
    if found.passed_over:
        say(describe_passed(found.passed_over))
    return folder, found.sources


def readable(predictor: Predictor, sources: list[Source], report: Report) -> list[Source]:
    """Return the images that can be read, so that all networks see the same; report the others."""
    found = [shot.source for shot in read_shots(sources, predictor.loader, report)]
    if not found:
        raise UserError(f"of {len(sources)} images none can be read (named above); name others")
    return found


def peer_of(name: str, predictor: Predictor, sources: list[Source]) -> nn.Module:
    """Build another backbone with random weights, the same each time."""
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        peer: Any = build_peer(name)
        peer.init_weights()
    images = list(middles(predictor, sources[:CALIBRATED]))
    return calibrate(peer.to(predictor.device), images)


def unlike(name: str, taken: Iterable[str]) -> str:
    """Return a name, with a number where it is taken."""
    number = sum(one.split(" #")[0] == name for one in taken)
    return f"{name} #{number + 1}" if number else name


def middles(predictor: Predictor, sources: list[Source]) -> Iterator[Tensor]:
    """Yield the middles (3, SIDE, SIDE) of images, as the model takes them."""
    prepare: Any = predictor.model.data_preprocessor
    for shot in read_shots(sources, predictor.loader, raise_it):
        data = dict(inputs=[middle(as_rgb(shot.results["img"])).flip(0)], data_samples=None)
        yield prepare(data, False)["inputs"][0]


def middle(image: np.ndarray) -> Tensor:
    """Resize the largest square in the middle of an image (H, W, 3): (3, SIDE, SIDE) uint8."""
    side = min(image.shape[:2])
    y, x = ((size - side) // 2 for size in image.shape[:2])
    square = cv2.resize(
        image[y : y + side, x : x + side], (SIDE, SIDE), interpolation=cv2.INTER_AREA
    )
    return torch.from_numpy(square.transpose(2, 0, 1).copy())
