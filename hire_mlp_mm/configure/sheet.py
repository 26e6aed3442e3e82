"""Draw some samples of the training data as the pipeline gives them: one picture of all."""

from __future__ import annotations

import copy
import functools
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from matplotlib import font_manager
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope
from mmengine.structures import PixelData
from PIL import Image, ImageDraw, ImageFont

from ..data.listing import evenly
from ..engine.harden import harden_dataset
from ..engine.quiet import quiet
from ..errors import UserError, describe
from ..prediction.pictures import Artist, as_rgb

COUNT, COLUMNS = 12, 4
CELL = 440  # pixels, of the longer side of a sample
GAP, LINE = 10, 24  # pixels around a sample, and of a line of text
LEGEND = 60  # names at most


def draw_sheet(cfg: Config) -> Image.Image:
    """Draw samples of a config's training split with boxes, masks and names.

    They are what the pipeline gives, after its augmentation and before normalisation.

    Args:
        cfg: whose data lie where it says.

    Raises:
        DataError: a file of the data set is wrong.
        UserError: the data set, or a step of its pipeline, fails.
    """
    try:
        with quiet(), seeded(), DefaultScope.overwrite_default_scope(cfg.default_scope):
            dataset = build_dataset(cfg, "train")
            info = dataset.metainfo
            artist = Artist(cfg, list(info["classes"]), info.get("palette", []))
            samples = [dataset[i] for i in evenly(len(dataset), COUNT)]
            for split in ("val", "test"):
                build_dataset(cfg, split)[0]
            cells = [draw_cell(artist, sample) for sample in samples]
    except UserError:
        raise
    except Exception as error:  # of whatever steps a pipeline has
        raise UserError(f"the config's data cannot be loaded: {describe(error)}") from error
    classes, palette = list(info["classes"]), list(info.get("palette") or ())
    if any("gt_sem_seg" in sample["data_samples"] for sample in samples):
        classes, palette = [*classes, "not learnt"], [*palette, (0, 0, 0)]
    return tile(cells, classes, palette)


def build_dataset(cfg: Config, split: str) -> Any:
    """Build the data set of a split with the checks of a run."""
    dataset = copy.deepcopy(cfg[f"{split}_dataloader"].dataset)
    harden_dataset(dataset)
    built = DATASETS.build(dataset)
    built.full_init()
    return built


@contextmanager
def seeded() -> Iterator[None]:
    """Draw random numbers from a fixed seed, and go on with the others afterwards."""
    states = random.getstate(), np.random.get_state()
    random.seed(0)
    np.random.seed(0)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


# A sample ----------------------------------------------------------------------------------------


def draw_cell(artist: Artist, packed: dict[str, Any]) -> tuple[Image.Image, str]:
    """Draw a sample as it comes from a pipeline; return it with a line to stand under it."""
    sample = packed["data_samples"]
    image = as_rgb(packed["inputs"].permute(1, 2, 0).numpy())
    scale = CELL / max(image.shape[:2])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    image = np.asarray(Image.fromarray(image).resize(size))
    name = str(sample.metainfo.get("img_path", "")).replace("\\", "/").rpartition("/")[2]
    if "gt_instances" in sample:
        resize_instances(sample.gt_instances, scale, size)
        artist.visualizer.add_datasample("", image, sample, draw_gt=True, draw_pred=False)
        return Image.fromarray(artist.visualizer.get_image()), name
    if "gt_sem_seg" in sample:
        labels = sample.gt_sem_seg.data[0].numpy().astype(np.uint8)
        labels = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
        sample.gt_sem_seg = PixelData(data=torch.from_numpy(labels.copy())[None])
        options = dict(draw_gt=True, draw_pred=False, with_labels=False)
        artist.visualizer.add_datasample("", image, sample, **options)
        return Image.fromarray(artist.write_names(labels)), name
    labels = ", ".join(artist.classes[int(label)] for label in sample.gt_label)
    return Image.fromarray(image), f"{labels}  ({name})"


def resize_instances(instances: Any, scale: float, size: tuple[int, int]) -> None:
    """Scale boxes and masks to an image that is drawn at `size` (width, height)."""
    boxes = instances.bboxes
    instances.bboxes = getattr(boxes, "tensor", boxes) * scale
    if "masks" in instances:
        instances.masks = instances.masks.resize(size[::-1])


# The sheet ---------------------------------------------------------------------------------------


def tile(cells: list[tuple[Image.Image, str]], classes: list[str], palette: Any) -> Image.Image:
    """Put drawn samples beside and below each other, and the names of the classes under them."""
    rows = [cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)]
    heights = [max(image.height for image, _ in row) + LINE + GAP for row in rows]
    width = min(COLUMNS, len(cells)) * (CELL + GAP) + GAP
    legend = place_legend(classes, width) if palette else []
    bottom = sum(heights) + GAP
    height = bottom + (legend[-1][2] + LINE + GAP if legend else 0)
    sheet = Image.new("RGB", (width, height), "white")
    draw, top = ImageDraw.Draw(sheet), GAP
    for row, tall in zip(rows, heights, strict=True):
        for i, (image, text) in enumerate(row):
            left = GAP + i * (CELL + GAP)
            sheet.paste(image, (left, top))
            draw.text((left, top + image.height + 3), cut(text), "black", font())
        top += tall
    for name, x, y in legend:
        colour = tuple(palette[classes.index(name)]) if name in classes else "white"
        draw.rectangle((x, bottom + y + 4, x + 14, bottom + y + 18), fill=colour)
        draw.text((x + 20, bottom + y + 2), name, "black", font())
    return sheet


def place_legend(classes: list[str], width: int) -> list[tuple[str, int, int]]:
    """Place names in lines of a width: each with its left and top in pixels."""
    names = classes[:LEGEND]
    if len(classes) > LEGEND:
        names = [*names, f"and {len(classes) - LEGEND} more"]
    placed, x, y = [], GAP, 0
    for name in names:
        wide = 36 + math.ceil(font().getlength(name))
        if x + wide > width and x > GAP:
            x, y = GAP, y + LINE
        placed.append((name, x, y))
        x += wide
    return placed


def cut(text: str) -> str:
    """Cut a line to the width of a sample."""
    while font().getlength(text) > CELL:
        text = f"{text.removesuffix('...')[:-1]}..."
    return text


@functools.cache
def font() -> ImageFont.FreeTypeFont:
    """Load a font that has more than the letters of English."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 14)
