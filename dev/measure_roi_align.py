#!/usr/bin/env python
"""Measure RoIAlign on this machine's CPU: torchvision's kernel and ours, forward and gradient.

    python dev/measure_roi_align.py

A thousand RoIs on the four levels of an image of 800 x 1344, as a detector's first stage has them:
256 channels, 7 x 7 bins. Milliseconds, medians; the ways take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict

import torch
from torch import Tensor

from hire_mlp_mm import mmcv_ops  # noqa: F401  before mmcv's ops are imported
from hire_mlp_mm.bench.report import markdown

HEIGHT, WIDTH, CHANNELS, RUNS = 800, 1344, 256, 9
# Of each level: its stride, how many RoIs, and the range of their sides in pixels.
LEVELS = [(4, 600, (16, 112)), (8, 200, (112, 224)), (16, 120, (224, 448)), (32, 80, (448, 900))]


def random_rois(count: int, sides: tuple[float, float]) -> Tensor:
    """Draw RoIs (count, 5) within the image, with sides that are even on a logarithmic scale."""
    low, high = torch.tensor(sides).log()
    half = (low + torch.rand(count, 2) * (high - low)).exp() / 2
    size = torch.tensor([WIDTH, HEIGHT])
    centre = torch.rand(count, 2) * size
    corners = [(centre - half).clamp(min=0), (centre + half).minimum(size)]
    return torch.cat([torch.zeros(count, 1), *corners], 1)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    torch.manual_seed(0)
    from mmcv.ops import RoIAlign
    from torchvision.ops import RoIAlign as TorchvisionsRoIAlign

    kinds = dict(torchvision=TorchvisionsRoIAlign, ours=RoIAlign)
    spent: dict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0.0] * RUNS)
    for stride, count, sides in LEVELS:
        rois = random_rois(count, sides)
        x = torch.randn(1, CHANNELS, HEIGHT // stride, WIDTH // stride)
        for layout in ("contiguous_format", "channels_last"):
            x = x.detach().contiguous(memory_format=getattr(torch, layout)).requires_grad_()
            for run in range(RUNS):
                for name, kind in kinds.items():
                    layer = kind((7, 7), 1 / stride, 0, aligned=True)
                    start = time.perf_counter()
                    out = layer(x, rois)
                    middle = time.perf_counter()
                    torch.autograd.grad(out, x, out.detach())
                    spent[name, layout, "forward"][run] += middle - start
                    spent[name, layout, "gradient"][run] += time.perf_counter() - middle
    rows = [
        [*key, f"{1e3 * statistics.median(times):.0f} ms"] for key, times in sorted(spent.items())
    ]
    print(markdown([["RoIAlign of", "memory format of the maps", "pass", "time"], *rows]))


if __name__ == "__main__":
    main()
