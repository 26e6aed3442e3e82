#!/usr/bin/env python
"""Export a model as ONNX (.onnx) or by torch.export (.pt2), checked, for images of any size.

    python tools/export_onnx.py configs/upernet_hire_s_ade20k.py CHECKPOINT upernet.onnx
    python tools/export_onnx.py configs/mask_rcnn_hire_s_1x_coco.py CHECKPOINT backbone.pt2 --fuse

A segmentor goes out whole: its logits, of the size of the image. Of a detector or a classifier, and
with --backbone of a segmentor, it is the backbone: its feature maps. The graph takes the images as
the config's data preprocessor gives them, (N, 3, H, W) in float32, RGB, normalised; what that means
in numbers stands in the file. N, H and W are free, H and W from 32 pixels up.

The file gets its name once its outputs equal PyTorch's at several sizes.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from _common import UserError, check_file, describe, read_config, run
from _loading import check_whole
from mmengine.config import Config, DictAction
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch.fx.experimental import _config as symbolic_shapes
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from hire_mlp_mm.checkpoint import read_checkpoint
from hire_mlp_mm.fuse import fuse

LEAST = 32  # pixels
TRACED = (2, 3, 233, 307)  # a batch on which no size of a map is 1, or another's
CHECKED = ((1, 3, LEAST, LEAST), (3, 3, 75, 203), (2, 3, 224, 161))
RUNS = 5  # timed, of each
NEEDED = ("onnx", "onnxruntime", "onnxscript")

Runner = Callable[[Tensor], Sequence[Tensor]]


class CheckError(Exception):
    """What was exported is not what it should be; the message is one line."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Export a segmentor, or the backbone of a detector or classifier, and check it."
    )
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", nargs="?", help="checkpoint file; without it random weights")
    parser.add_argument("out", help="file to write, .onnx or .pt2; it must not exist")
    parser.add_argument("--backbone", action="store_true", help="the backbone of a segmentor, too")
    parser.add_argument("--fuse", action="store_true", help="export the exact inference form")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="largest difference to PyTorch's output, over its largest value (default: 1e-4)",
    )
    parser.add_argument("--size", default="512x512", help="height x width to measure the time at")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        default={},
        metavar="KEY=VALUE",
        help="override settings of the config, such as model.backbone.arch=tiny",
    )
    return parser.parse_intermixed_args()  # the checkpoint may be missing, options stand anywhere


# The model --------------------------------------------------------------------------------------


class Segmentor(nn.Module):
    """A segmentor of MMSegmentation from image to logits, as its whole inference has them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, classes, H, W)."""
        logits = self.model(image)
        return F.interpolate(
            logits, image.shape[2:], mode="bilinear", align_corners=self.model.align_corners
        )


def build(cfg: Config, checkpoint: str | None, backbone_only: bool) -> tuple[nn.Module, list[str]]:
    """The part of a config's model that is exported, with its weights, and its outputs' names.

    Raises:
        UserError: the backbone is not HireMLP, or the checkpoint is another model's.
    """
    whole = cfg.default_scope == "mmseg" and not backbone_only
    model_cfg = cfg.model if whole else cfg.model.get("backbone") or {}
    backbone_cfg = cfg.model.get("backbone") or {}
    if str(backbone_cfg.get("type")).rpartition(".")[2] != "HireMLP":
        raise UserError(
            f"model.backbone of {cfg.filename} is {backbone_cfg.get('type')}; expected HireMLP"
        )
    backbone_cfg.init_cfg = None
    if whole:
        model_cfg.update(auxiliary_head=None, pretrained=None)  # not part of inference
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(model_cfg)
    if checkpoint is None:
        print("warning: no checkpoint given: the weights are random")
        randomize(model)
    elif whole:
        load_whole(model, checkpoint)
    else:
        model.load_pretrained(checkpoint)
    model.requires_grad_(False).eval()
    if whole:
        return Segmentor(model), ["logits"]
    return model, [f"stage{i}" for i in model.out_indices]


def randomize(model: nn.Module) -> None:
    """Weights of a size that makes every part of a network matter; fresh blocks add little."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.5 / module.weight[0].numel() ** 0.5)
        elif isinstance(module, _BatchNorm) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


def load_whole(model: nn.Module, checkpoint: str) -> None:
    """Load a checkpoint that has every tensor of the model; it may have more.

    Raises:
        CheckpointError: it has not.
    """
    state = read_checkpoint(checkpoint)
    check_whole(state, model, f"checkpoint {checkpoint}")
    model.load_state_dict({key: state[key] for key in model.state_dict()})


# The graph --------------------------------------------------------------------------------------


class AnySize(TorchFunctionMode):
    """Operations that torch.export would settle for the traced size, in a form for every size.

    How a tensor lies in memory, and whether one may be seen in another shape without a copy, is
    such a thing: here every tensor lies as its shape says, and is copied to that end.
    """

    MOVING = (Tensor.permute, Tensor.transpose)
    PRODUCT = (torch.matmul, Tensor.matmul, Tensor.__matmul__)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.adaptive_avg_pool2d:
            return average_pool(*args, **kwargs)
        if func in self.PRODUCT:
            return product(*args)
        if func is Tensor.contiguous:
            return copied(args[0])
        if func is Tensor.reshape:
            return copied(args[0]).view(*args[1:])
        out = func(*args, **kwargs)
        return copied(out) if func in self.MOVING else out


def copied(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.contiguous_format)


def product(x: Tensor, y: Tensor) -> Tensor:
    """`x @ y` of (..., M, K) and (..., K, N), of which `@` would decide how to do it."""
    batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    shape = (*batch, x.shape[-2], y.shape[-1])
    x, y = (copied(one.expand(*batch, *one.shape[-2:])).flatten(0, -3) for one in (x, y))
    return torch.bmm(x, y).view(shape)


def average_pool(x: Tensor, output_size: Any) -> Tensor:
    """`F.adaptive_avg_pool2d`, exactly, as a product with a matrix for each axis.

    Args:
        x: (B, C, H, W).
        output_size: h and w, or one number for both.
    """
    h, w = output_size if isinstance(output_size, Sequence) else (output_size, output_size)
    return product(product(averages(h, x.shape[2], x), x), averages(w, x.shape[3], x).t())


def averages(bins: int, size: int, like: Tensor) -> Tensor:
    """(bins, size): row i is a mean over floor(i * size / bins) to ceil((i + 1) * size / bins)."""
    place = torch.arange(size, device=like.device)
    i = torch.arange(bins, device=like.device)[:, None]
    # The same limits in whole numbers.
    inside = ((place + 1) * bins > i * size) & (place * bins < (i + 1) * size)
    inside = inside.to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def upsample(self: nn.Module, x: Tensor) -> Tensor:
    """MMSegmentation's `Upsample`, which makes ints of the sizes."""
    size = self.size
    if not size and self.scale_factor == int(self.scale_factor):
        size = [s * int(self.scale_factor) for s in x.shape[2:]]
    scale_factor = None if size else self.scale_factor
    return F.interpolate(x, size, scale_factor, self.mode, self.align_corners)


class ForAnySize(nn.Module):
    """A model whose trace holds for every size."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Any:
        with AnySize():
            return self.model(image)


def trace(model: nn.Module, scope: str) -> torch.export.ExportedProgram:
    """The graph of a model, for any number of images and any height and width from `LEAST` up."""
    free = torch.export.Dim.DYNAMIC
    sizes = {0: free(min=1), 2: free(min=LEAST), 3: free(min=LEAST)}
    with contextlib.ExitStack() as stack:
        if scope == "mmseg":
            from mmseg.models.utils import wrappers

            stack.enter_context(mock.patch.object(wrappers.Upsample, "forward", upsample))
            # The last is `warning`: its advice on sizes makes ints of them, too.
            defaults = (*wrappers.resize.__defaults__[:-1], False)
            stack.enter_context(mock.patch.object(wrappers.resize, "__defaults__", defaults))
        # A size of 1 is a size like others; without this the graph would exclude it.
        stack.enter_context(symbolic_shapes.patch(backed_size_oblivious=True))
        stack.enter_context(torch.no_grad())
        return torch.export.export(
            ForAnySize(model).eval(), (torch.randn(TRACED),), dynamic_shapes=(sizes,), strict=False
        )


# Files ------------------------------------------------------------------------------------------


def facts_of(cfg: Config) -> dict[str, str]:
    """What the graph takes, for the file: what the config's data preprocessor makes."""
    preprocessor = cfg.model.get("data_preprocessor") or cfg.get("data_preprocessor") or {}
    rgb = preprocessor.get("bgr_to_rgb") or preprocessor.get("to_rgb")
    facts = dict(
        image="(N, 3, H, W), float32, (image - mean) / std",
        channels="RGB" if rgb else "BGR",
        mean=preprocessor.get("mean") or [0, 0, 0],
        std=preprocessor.get("std") or [1, 1, 1],
    )
    return {key: one if isinstance(one, str) else json.dumps(one) for key, one in facts.items()}


def write_onnx(
    program: torch.export.ExportedProgram, names: list[str], facts: dict[str, str], path: Path
) -> None:
    """Write a graph as ONNX, the weights inside."""
    from onnxscript import opset18

    def remainder(x, size):  # type: ignore[no-untyped-def]
        """`x % size` of whole numbers; onnxscript's own takes no size that is free."""
        return opset18.Mod(x, opset18.CastLike(size, x))

    exported = torch.onnx.export(
        program,
        input_names=["image"],
        output_names=names,
        dynamic_shapes=({0: "batch", 2: "height", 3: "width"},),
        custom_translation_table={torch.ops.aten.remainder.Scalar: remainder},
        dynamo=True,  # by way of torch.export; tracing once would keep sizes that stand in Python
        verbose=False,
    )
    assert exported is not None
    exported.model.metadata_props.update(facts)
    exported.save(path)


def open_file(path: Path) -> Runner:
    """An exported file as a function from images to outputs, on PyTorch's number of threads."""
    if path.suffix == ".pt2":
        program = torch.export.load(path).module()
        return lambda image: as_sequence(program(image))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: [
        torch.from_numpy(one) for one in session.run(None, {"image": image.numpy()})
    ]


def as_sequence(outputs: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else outputs


def check(runner: Runner, model: nn.Module, names: list[str], tolerance: float) -> None:
    """Compare a file's outputs with PyTorch's at several sizes, and print the differences.

    Raises:
        CheckError: they differ, or it does not run.
    """
    torch.manual_seed(1)
    for shape in CHECKED:
        image = torch.randn(shape)
        try:
            found = runner(image)
        except Exception as error:  # whatever the runtime raises
            raise CheckError(f"it fails on images {shape}: {describe(error)}") from error
        wanted = as_sequence(model(image))
        differences = {
            name: difference(one, other)
            for name, one, other in zip(names, found, wanted, strict=True)
        }
        said = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
        print(f"largest relative difference to PyTorch, images {shape}: {said}", flush=True)
        worst = max(differences, key=lambda name: differences[name])
        if not differences[worst] <= tolerance:
            raise CheckError(
                f"{worst} differs from PyTorch's by {differences[worst]:.1e} of its largest value "
                f"on images {shape}; expected at most {tolerance:.1e}"
            )


def difference(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest value; infinite for another shape."""
    if found.shape != wanted.shape:
        return float("inf")
    return float((found - wanted).abs().max() / wanted.abs().max())


def times(runners: Sequence[Runner], height: int, width: int) -> list[float]:
    """Median milliseconds of each for one image; they take turns."""
    image = torch.randn(1, 3, height, width)
    seconds: list[list[float]] = [[] for _ in runners]
    for _ in range(RUNS + 1):  # the first is a warm-up
        for runner, own in zip(runners, seconds, strict=True):
            start = time.perf_counter()
            runner(image)
            own.append(time.perf_counter() - start)
    return [1000 * statistics.median(own[1:]) for own in seconds]


# The command ------------------------------------------------------------------------------------


def check_new(path: Path) -> None:
    """Raise UserError where something is in the way."""
    if os.path.lexists(path):
        raise UserError(f"{path} exists already; name a new file")


def check_arguments(args: argparse.Namespace) -> tuple[Path, int, int]:
    """The file to write, and the height and width to measure at.

    Raises:
        UserError: an argument that cannot be, or a package that is missing.
    """
    out = Path(args.out)
    if out.suffix not in (".onnx", ".pt2"):
        raise UserError(f"{out}: expected a name that ends in .onnx or .pt2")
    check_new(out)
    if not out.parent.is_dir():
        raise UserError(f"folder {out.parent} not found; make it first")
    if args.checkpoint:
        check_file(args.checkpoint, "checkpoint")
    size = re.fullmatch(r"(\d+)x(\d+)", args.size)
    if not size or min(int(size[1]), int(size[2])) < LEAST:
        raise UserError(f"--size {args.size}: expected height x width, from {LEAST}x{LEAST} up")
    if not hasattr(symbolic_shapes, "backed_size_oblivious"):
        raise UserError(f"torch {torch.__version__} cannot export sizes that are free; 2.11 can")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing and out.suffix == ".onnx":
        raise UserError(f"{', '.join(missing)} not found: pip install {' '.join(NEEDED)}")
    return out, int(size[1]), int(size[2])


def export(args: argparse.Namespace) -> None:
    """Trace, write, check, measure; the file gets its name at the end.

    Raises:
        UserError: see `check_arguments` and `build`; or a model that cannot be traced.
        CheckError: see `check`.
    """
    out, height, width = check_arguments(args)
    print(f"reading {args.config}", flush=True)
    cfg = read_config(args.config)
    cfg.merge_from_dict(args.cfg_options)
    plain, names = build(cfg, args.checkpoint, args.backbone)
    model = plain
    if args.fuse:
        try:
            model = fuse(plain)
        except ValueError as error:
            raise UserError(f"--{error}") from error
    facts = facts_of(cfg)
    print("exporting; this may take a minute", flush=True)
    start = time.perf_counter()
    # Beside its place, so that it gets its name in one step, and under a name that nobody has.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.") as folder:
        part = Path(folder, out.name)
        try:
            program = trace(model, cfg.default_scope)
            if out.suffix == ".onnx":
                write_onnx(program, names, facts, part)
            else:
                torch.export.save(program, part, extra_files={"facts.json": json.dumps(facts)})
        except Exception as error:  # a head that decides on sizes, or has no place in ONNX
            raise UserError(f"{args.config} cannot be exported: {describe(error)}") from error
        del program
        print(f"exported in {time.perf_counter() - start:.0f} s; checking the file", flush=True)
        runner = open_file(part)
        check(runner, plain, names, args.tolerance)
        print(f"measuring the time at {height} x {width}", flush=True)
        ours, theirs = times([runner, lambda x: as_sequence(model(x))], height, width)
        what = "onnxruntime" if out.suffix == ".onnx" else "the file"
        print(
            f"{what} {ours:.0f} ms, PyTorch {theirs:.0f} ms: an image of {height} x {width}, "
            f"CPU, threads: {torch.get_num_threads()}"
        )
        check_new(out)
        part.rename(out)
    normalised = f"(image - {facts['mean']}) / {facts['std']}"
    print(
        f"wrote {out}, {out.stat().st_size / 1e6:.0f} MB: image (N, 3, H, W), "
        f"{facts['channels']}, {normalised}, to {', '.join(names)}"
    )


def main() -> None:
    args = parse_args()
    warnings.simplefilter("ignore")  # the hosts' and the exporter's, about themselves
    try:
        with torch.no_grad():
            export(args)
    except CheckError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: error: {args.out} not written: {error}")


if __name__ == "__main__":
    run(main)
