"""Measure the receptive fields of docs/explain.md, and write its plots and tables.

    python dev/receptive_fields.py PHOTOGRAPHS
    python dev/receptive_fields.py PHOTOGRAPHS --trained work_dirs/NAME PHOTOGRAPHS_OF_ITS_KIND

The networks have random weights, drawn as for a training, and BatchNorm statistics of some of the
photographs. Held means that no gradient goes through the mean in Hire-MLP's gate. What is measured
is kept in work_dirs/receptive_fields_N.npz, and not measured twice.
"""

from __future__ import annotations

import argparse
import copy
import re
import sys
from collections.abc import Container, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import MMLogger
from torch import Tensor, nn

from hire_mlp_mm import HireMLPNet
from hire_mlp_mm.bench.candidates import build_peer
from hire_mlp_mm.explain.fields import CALIBRATED, Field, calibrate, receptive_fields
from hire_mlp_mm.explain.plots import plot_fields
from hire_mlp_mm.explain.run import middle, middles
from hire_mlp_mm.hire_mlp import HireModule, init_module
from hire_mlp_mm.prediction import Predictor
from hire_mlp_mm.prediction.inputs import find_inputs, load_image

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
HELD = "Hire-Small,\ngate's mean held"
ROWS = {"Hire-Small": False, HELD: True}
PEERS = {"Swin-T": "swin-t", "ResNet-50": "resnet-50"}
CROPS = (96, 160, 320, 448)  # pixels that are shown of each stage
# Stages that are shown block by block: which blocks, and pixels of the middle.
STAGES = {0: ((0, 1, 2), 64), 2: ((0, 1, 2, 3, 5, 9), 320)}
PAGE = Path("docs/explain.md")
PLACE = re.compile(r"(<!-- fields: [^\n]*-->\n).*?(<!-- end -->\n)", re.S)


class Blocks(nn.Module):
    """Give the maps after some blocks of one stage."""

    def __init__(self, net: HireMLPNet, stage: int, shown: Sequence[int]) -> None:
        super().__init__()
        self.net, self.stage, self.shown = net, stage, shown

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to a list of (B, C, h, w)."""
        x = self.net.stem(image.contiguous(memory_format=torch.channels_last))
        for stage in self.net.stages[: self.stage]:
            x = stage(x)
        last = self.net.stages[self.stage]
        maps, x = [], last.downsample(x)
        for block in last.blocks:
            x = block(x)
            maps.append(x)
        return [maps[j] for j in self.shown]


def hold_gates(net: nn.Module) -> nn.Module:
    """Let no gradient through the means in the gates."""
    for module in net.modules():
        if isinstance(module, HireModule):
            module.gate = partial(held_gate, module)
    return net


def held_gate(module: HireModule, *branches: Tensor) -> Tensor:
    """Weigh branches as `HireModule.gate` does, as if their means were fixed."""
    return HireModule.gate(module, *(branch.detach() for branch in branches))


def build(title: str, images: list[Tensor]) -> nn.Module:
    """Build a network of the page."""
    torch.manual_seed(0)
    if title in PEERS:
        net = build_peer(PEERS[title])
        net.init_weights()
    else:
        net = HireMLPNet("small")
        if ROWS[title]:
            hold_gates(net)
    return calibrate(net, images)


def measure(images: list[Tensor], known: Container[str]) -> Iterator[tuple[str, list[Field]]]:
    """Yield a name and its fields, for each row of each plot that is not known."""
    for title in (*ROWS, *PEERS):
        if title in known:
            continue
        net = build(title, images[:CALIBRATED])
        for stage, (shown, _) in STAGES.items() if title in ROWS else ():
            yield f"{title}/{stage}", receptive_fields(Blocks(net, stage, shown), images)
        yield title, receptive_fields(net, images)


def measure_trained(work_dir: str, photographs: str, number: int) -> dict[str, list[Field]]:
    """Measure a trained backbone of Hire-MLP, and the same before its training."""
    predictor = Predictor(work_dir)
    images = list(middles(predictor, find_inputs([photographs]).sources[:number]))
    net = predictor.model.backbone.requires_grad_(False)
    before = calibrate(copy.deepcopy(net).apply(init_module), images[:CALIBRATED])
    return {
        "before training": receptive_fields(before, images),
        "trained": receptive_fields(net, images),
        "trained,\ngate's mean held": receptive_fields(hold_gates(net), images),
    }


def load(path: Path) -> dict[str, list[Field]]:
    """Read what was measured before."""
    if not path.exists():
        return {}
    with np.load(path) as held:
        found: dict[str, list[Field]] = {}
        for key in held:
            name, _, stride = key.split("|")
            found.setdefault(name, []).append(Field(int(stride), held[key].astype(np.float64)))
    return found


def keep(found: dict[str, list[Field]], path: Path) -> None:
    """Keep what was measured."""
    path.parent.mkdir(exist_ok=True)
    named = {
        f"{name}|{i:02}|{one.stride}": one.values.astype(np.float32)
        for name, fields in found.items()
        for i, one in enumerate(fields)
    }
    np.savez_compressed(path, **named)


def median(field: Field) -> float:
    """Return the median of a field as a share of its largest value: what comes from all over."""
    return float(np.median(field.values) / field.values.max())


def tables(found: dict[str, list[Field]], number: int) -> str:
    """Write the tables of the page."""
    lines = [f"Means over {number} photographs, the middles of them at 448 x 448 pixels.", ""]
    strides = [4, 8, 16, 32]
    head = " | ".join(f"stride {stride}" for stride in strides)
    lines += [f"| pixels a side that hold 50 % / 90 % | {head} |", "|---|" + "---|" * len(strides)]
    for title in (*ROWS, *PEERS):
        cells = [f"{one.side(0.5)} / {one.side(0.9)}" for one in found[title]]
        lines.append(f"| {title.replace(chr(10), ' ')} | {' | '.join(cells)} |")
    lines += ["", f"| median pixel / strongest | {head} |", "|---|" + "---|" * len(strides)]
    for title in (*ROWS, *PEERS):
        cells = [f"{median(one):.0e}" if median(one) else "0" for one in found[title]]
        lines.append(f"| {title.replace(chr(10), ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(found: dict[str, list[Field]], folder: Path) -> None:
    """Write the plots of the page."""
    titles = [f"stage {i + 1}, stride {4 * 2**i}" for i in range(4)]
    rows = {title: found[title] for title in (*ROWS, *PEERS)}
    plot_fields(rows, folder / "receptive_fields.png", titles, CROPS)
    arch = HireMLPNet("small").arch
    for stage, (shown, crop) in STAGES.items():
        titles = [f"block {j + 1}, shift {arch.shift(stage, j)}" for j in shown]
        rows = {title: found[f"{title}/{stage}"] for title in ROWS}
        path = folder / f"receptive_fields_stage{stage + 1}.png"
        plot_fields(rows, path, titles, [crop] * len(shown))


def say(name: str, fields: list[Field]) -> None:
    """Print the sides of the squares that hold 50 % and 90 % of each field, and the medians."""
    figures = [f"{one.side(0.5)} / {one.side(0.9)}, {median(one):.0e}" for one in fields]
    print(f"{name.replace(chr(10), ' ')}: {'; '.join(figures)}", flush=True)


def main() -> None:
    """Measure what is not measured yet, and write plots and tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", help="a folder")
    parser.add_argument("--number", type=int, default=32, help="of photographs (%(default)s)")
    a_network = "a work dir, and photographs for it: one plot more"
    parser.add_argument("--trained", nargs=2, metavar=("DIR", "PHOTOGRAPHS"), help=a_network)
    args = parser.parse_args()
    MMLogger.get_current_instance().setLevel("ERROR")
    if args.trained:
        rows = measure_trained(*args.trained, args.number)
        for name, fields in rows.items():
            say(name, fields)
        plot_fields(rows, PAGE.parent / "images/receptive_fields_trained.png")
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    paths = [source.path for source in find_inputs([args.photographs]).sources][: args.number]
    squares = [middle(load_image(dict(img_path=path))["img"][..., ::-1]) for path in paths]
    images = [(square - mean) / std for square in squares]
    kept = Path(f"work_dirs/receptive_fields_{len(images)}.npz")
    found = load(kept)
    for name, fields in measure(images, list(found)):
        say(name, fields)
        found[name] = fields
        keep(found, kept)
    plot(found, PAGE.parent / "images")
    written = tables(found, len(images))
    page, times = PLACE.subn(lambda place: place[1] + written + place[2], PAGE.read_text())
    if not times:
        sys.exit(f"{PAGE}: expected a line '<!-- fields: ... -->' and one '<!-- end -->' after it")
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
