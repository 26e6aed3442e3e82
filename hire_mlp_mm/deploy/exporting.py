"""Export a model as ONNX (.onnx) or by torch.export (.pt2), checked, for images of any size.

A segmentor goes out whole: its logits, of the size of the image. Of a detector or a classifier, and
of a segmentor if asked, it is the backbone: its feature maps. The graph takes the images as the
config's data preprocessor gives them, (N, 3, H, W) in float32, RGB, normalised; what that means in
numbers stands in the file. N, H and W are free, H and W from 32 pixels up.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ..checkpoint import read_checkpoint
from ..engine.backbones import fuse_model
from ..engine.checkpoints import load_checked
from ..errors import UserError, describe
from ..hire_mlp import HireMLPNet
from . import formats, tracing
from .formats import CheckError as CheckError
from .formats import Say


@dataclass(frozen=True)
class Exported:
    """Describe a file that was written and checked.

    Attributes:
        path: of the file.
        names: of its outputs.
        facts: what the images are to be, as they stand in the file.
        difference: the largest to PyTorch's outputs, over their largest value.
        milliseconds: of the file and of PyTorch for one image, where they were to be measured.
    """

    path: Path
    names: list[str]
    facts: dict[str, str]
    difference: float
    milliseconds: tuple[float, float] | None = None


def export(
    model: Any,
    path: str | os.PathLike[str],
    checkpoint: str | None = None,
    *,
    backbone: bool = False,
    fused: bool = False,
    tolerance: float = 1e-4,
    measure_at: tuple[int, int] | None = None,
    say: Say = lambda line: None,
) -> Exported:
    """Export a model; the file gets its name once its outputs equal PyTorch's at several sizes.

    Args:
        model: a config, or a model as `init_model` and the like give it, or a HireMLPNet.
        path: file to write, `.onnx` or `.pt2`; it must not exist.
        checkpoint: weights for a config's model; random ones without it.
        backbone: the backbone of a segmentor, too.
        fused: export the exact inference form.
        tolerance: largest difference to PyTorch's output, over its largest value.
        measure_at: height and width to measure the time at.
        say: is told how far it has come, in lines.

    Raises:
        UserError: an argument that cannot be, a package that is missing, or a model that cannot be
            traced.
        CheckError: the file's outputs are not PyTorch's.
    """
    out = Path(path)
    check_target(out)
    with torch.no_grad():
        plain, names, cfg = part_of(model, checkpoint, backbone, say)
        facts = {} if cfg is None else facts_of(cfg)
        wanted = fuse_model(plain) if fused else plain
        say("exporting; this may take a minute")
        # Beside its place, so that it gets its name in one step, and under a name nobody has.
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.") as folder:
            part = Path(folder, out.name)
            write(wanted, names, facts, part, say)
            runner = formats.open_file(part)
            difference = formats.compare(runner, plain, names, tolerance, say)
            times = None
            if measure_at:
                say("measuring the time at {} x {}".format(*measure_at))
                runners = [runner, lambda x: formats.as_sequence(wanted(x))]
                ours, theirs = formats.times(runners, *measure_at)
                times = ours, theirs
            check_new(out)
            part.rename(out)
    return Exported(out, names, facts, difference, times)


def check_target(out: Path) -> None:
    """Raise UserError unless a file of that name can be made, here and with this torch."""
    if out.suffix not in (".onnx", ".pt2"):
        raise UserError(f"{out}: expected a name that ends in .onnx or .pt2")
    check_new(out)
    if not out.parent.is_dir():
        raise UserError(f"folder {out.parent} not found; make it first")
    if not tracing.can_trace():
        raise UserError(f"torch {torch.__version__} cannot export sizes that are free; 2.11 can")
    missing = [name for name in formats.NEEDED if importlib.util.find_spec(name) is None]
    if missing and out.suffix == ".onnx":
        needed = " ".join(formats.NEEDED)
        raise UserError(f"{', '.join(missing)} not found: pip install {needed}")


def check_new(path: Path) -> None:
    """Raise UserError where something is in the way."""
    if os.path.lexists(path):
        raise UserError(f"{path} exists already; name a new file")


def write(model: nn.Module, names: list[str], facts: dict[str, str], path: Path, say: Say) -> None:
    """Trace a model and write the graph, or raise UserError where that cannot be done."""
    start = time.perf_counter()
    try:
        program = tracing.trace(model)
        if path.suffix == ".onnx":
            formats.write_onnx(program, names, facts, path)
        else:
            torch.export.save(program, path, extra_files={"facts.json": json.dumps(facts)})
    except Exception as error:  # whatever a head, or the exporter, raises
        raise UserError(f"{path.name}: the model cannot be exported: {describe(error)}") from error
    say(f"exported in {time.perf_counter() - start:.0f} s; checking the file")


# The model --------------------------------------------------------------------------------------


class Segmentor(nn.Module):
    """Run a segmentor of MMSegmentation from image to logits, as its whole inference does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.align_corners: bool = model.align_corners  # type: ignore[assignment]

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, classes, H, W)."""
        logits = self.model(image)
        return F.interpolate(
            logits, image.shape[2:], mode="bilinear", align_corners=self.align_corners
        )


def part_of(
    model: Any, checkpoint: str | None, backbone: bool, say: Say
) -> tuple[nn.Module, list[str], Any]:
    """Return the part of a model that is exported, the names of its outputs, and its config."""
    if isinstance(model, nn.Module):
        cfg, part = getattr(model, "cfg", None), copy.deepcopy(model)
    else:
        cfg, part = model, build(model, checkpoint, backbone, say)
    part.requires_grad_(False).eval()
    if not isinstance(part, HireMLPNet):
        inner = getattr(part, "backbone", None)
        if not isinstance(inner, HireMLPNet):
            raise UserError(f"{type(model).__name__} has no HireMLP as its backbone")
        if hasattr(part, "decode_head") and not backbone:
            test_cfg: Any = part.test_cfg
            if test_cfg.get("mode") == "slide":
                say("warning: test_cfg.mode is slide: the file takes images whole, without windows")
            return Segmentor(part), ["logits"], cfg
        part = inner
    return part, [f"stage{i}" for i in part.out_indices], cfg


def build(cfg: Any, checkpoint: str | None, backbone_only: bool, say: Say) -> nn.Module:
    """Build the segmentor of a config, or the backbone of another model, with its weights."""
    cfg = copy.deepcopy(cfg)
    backbone: Any = cfg.model.get("backbone") or {}
    if str(backbone.get("type")).rpartition(".")[2] != "HireMLP":
        raise UserError(
            f"model.backbone of {cfg.filename} is {backbone.get('type')}; expected HireMLP"
        )
    backbone.init_cfg = None
    whole = cfg.default_scope == "mmseg" and not backbone_only
    if whole:
        cfg.model.update(auxiliary_head=None, pretrained=None)  # not part of inference
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model if whole else backbone)
    if checkpoint is None:
        say("warning: no checkpoint given: the weights are random")
        randomize(model)
    elif whole:
        load_checked(read_checkpoint(checkpoint), model, f"checkpoint {checkpoint}")
    else:
        model.load_pretrained(checkpoint)
    return model


def randomize(model: nn.Module) -> None:
    """Draw weights that make every part of a network matter; fresh blocks add little."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.5 / module.weight[0].numel() ** 0.5)
        elif isinstance(module, _BatchNorm) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]


def facts_of(cfg: Any) -> dict[str, str]:
    """Describe the images that the graph takes, as the config's data preprocessor makes them."""
    preprocessor = cfg.model.get("data_preprocessor") or cfg.get("data_preprocessor") or {}
    rgb = preprocessor.get("bgr_to_rgb") or preprocessor.get("to_rgb")
    return dict(
        image="(N, 3, H, W), float32, (image - mean) / std",
        channels="RGB" if rgb else "BGR",
        mean=json.dumps(preprocessor.get("mean") or [0, 0, 0]),
        std=json.dumps(preprocessor.get("std") or [1, 1, 1]),
    )
