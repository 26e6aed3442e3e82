#!/usr/bin/env python
"""Draw a data set of circles, squares and triangles from a seed: no download, seconds to write.

    python tools/shapes.py FOLDER [--train 400] [--val 100] [--seed 0]

Size, rotation and place say nothing about the class and colour says something, as with things in
photographs: semantic segmentation of shapes of any colour takes more than minutes to learn. Shapes
cover each other; the truth is what remains visible, to the pixel. The same scenes are written in
two ways::

    FOLDER/
      images/{training,validation}/00000.jpg
      annotations/instances_{training,validation}.json    COCO, masks run-length encoded
      annotations/{training,validation}/00000.png         ADE20K's layout: one class per pixel

In the PNG files 0 is the background, and k + 1 the k-th of `CLASSES`.
"""

from __future__ import annotations

import argparse
import colorsys
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

CLASSES = ("circle", "square", "triangle")
SIDES = (None, 4, 3)  # of each class
SPLITS = ("training", "validation")
RADII = (12.0, 22.0)  # of a circle; a square and a triangle get the same area, in pixels
LEAST_VISIBLE = 0.5  # of a shape's whole area
HUES = (0.0, 0.58, 0.28)  # red, blue, green: where each class's colours lie around the circle
HUE_SPREAD = 0.13


class Scene(NamedTuple):
    """An image and its truth."""

    image: np.ndarray  # (S, S, 3) uint8, RGB
    masks: np.ndarray  # (N, S, S) bool, the visible part of each shape; no pixel belongs to two
    labels: np.ndarray  # (N,) indices into `CLASSES`


def draw_scene(rng: np.random.Generator, size: int = 128) -> Scene:
    """Draw 2 to 5 shapes, each over the ones before, on blurred patches of dull colours.

    A shape that would leave too little of another one visible is placed anew, so that nothing is
    in the image that is not in the truth.
    """
    patches = rng.uniform(40, 150) + rng.uniform(-40, 40, (5, 5, 3))
    small = Image.fromarray(patches.clip(0, 255).astype(np.uint8))
    image = np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), dtype=float)
    masks: list[np.ndarray] = []
    areas: list[int] = []  # with what is covered, or lies outside of the image
    labels: list[int] = []
    target = rng.integers(2, 6)
    for _ in range(50):  # tries; an image too full for one more shape keeps those that it has
        label = int(rng.integers(len(CLASSES)))
        distance, area = draw_shape(rng, label, size)
        visible = [*(mask & (distance >= 0) for mask in masks), distance < 0]
        whole = [*areas, area]
        if any(v.sum() < LEAST_VISIBLE * w for v, w in zip(visible, whole, strict=True)):
            continue
        hue = (HUES[label] + rng.uniform(-HUE_SPREAD, HUE_SPREAD)) % 1.0
        colour = colorsys.hsv_to_rgb(hue, rng.uniform(0.4, 1.0), rng.uniform(0.5, 1.0))
        opacity = np.clip(0.5 - distance, 0, 1)[..., None]  # smooth edges, 1 pixel wide
        image = image + opacity * (255 * np.array(colour) - image)
        masks, areas, labels = visible, whole, [*labels, label]
        if len(masks) == target:
            break
    image = image + rng.normal(0, rng.uniform(3, 9), image.shape)
    return Scene(image.clip(0, 255).astype(np.uint8), np.stack(masks), np.array(labels))


def draw_shape(rng: np.random.Generator, label: int, size: int) -> tuple[np.ndarray, int]:
    """Return each pixel's distance to the outline of a shape, negative inside, and its area."""
    sides = SIDES[label]
    radius = rng.uniform(*RADII)
    if sides is not None:  # around a regular polygon that is as large as the circle
        radius *= np.sqrt(2 * np.pi / (sides * np.sin(2 * np.pi / sides)))
    centre_x, centre_y = rng.uniform(0.7 * radius, size - 0.7 * radius, 2)
    margin = int(np.ceil(radius))
    grid = np.arange(-margin, size + margin) + 0.5
    x, y = grid[None, :] - centre_x, grid[:, None] - centre_y
    if sides is None:
        distance = np.hypot(x, y) - radius
    else:
        angles = rng.uniform(0, 2 * np.pi) + np.arange(sides) * 2 * np.pi / sides
        inner_radius = radius * np.cos(np.pi / sides)
        distance = np.max([x * np.cos(a) + y * np.sin(a) for a in angles], axis=0) - inner_radius
    inside = slice(margin, margin + size)
    return distance[inside, inside], int((distance < 0).sum())


def write_split(folder: Path, split: str, count: int, size: int, seed: int) -> None:
    """Write one split. Image i depends on the seed, the split and i, not on `count`."""
    image_folder, map_folder = folder / "images" / split, folder / "annotations" / split
    for one in (image_folder, map_folder):
        one.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for i in range(count):
        scene = draw_scene(np.random.default_rng([seed, SPLITS.index(split), i]), size)
        classes = scene.labels + 1
        Image.fromarray(scene.image).save(image_folder / f"{i:05d}.jpg", quality=92)
        semantic = (classes[:, None, None] * scene.masks).sum(axis=0).astype(np.uint8)
        Image.fromarray(semantic).save(map_folder / f"{i:05d}.png")
        images.append(dict(id=i, file_name=f"{i:05d}.jpg", width=size, height=size))
        for mask, category in zip(scene.masks, classes.tolist(), strict=True):
            rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
            record = dict(id=len(annotations) + 1, image_id=i, category_id=category)
            record.update(bbox=coco_mask.toBbox(rle).tolist(), area=int(mask.sum()), iscrowd=0)
            record["segmentation"] = dict(size=rle["size"], counts=rle["counts"].decode())
            annotations.append(record)
    categories = [dict(id=k + 1, name=name) for k, name in enumerate(CLASSES)]
    coco = dict(images=images, annotations=annotations, categories=categories)
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(coco))


def write_shapes(
    folder: Path, train: int = 400, val: int = 100, size: int = 128, seed: int = 0
) -> None:
    """Write the data set into `folder`, which is made; files of the same names are replaced.

    Args:
        folder: where to.
        train: images to train on.
        val: images to test on.
        size: side of an image in pixels.
        seed: equal seeds give equal files.
    """
    for split, count in zip(SPLITS, (train, val), strict=True):
        write_split(Path(folder), split, count, size, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a data set of circles, squares, triangles.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=400, help="images to train on")
    parser.add_argument("--val", type=int, default=100, help="images to test on")
    parser.add_argument("--size", type=int, default=128, help="side of an image in pixels")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_shapes(**vars(args))
    print(f"{args.train} and {args.val} images in {args.folder}")


if __name__ == "__main__":
    main()
