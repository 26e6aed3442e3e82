"""Export a whole model as ONNX (.onnx) or by torch.export (.pt2), checked, for images of any size.

A detector gives boxes, scores, labels and masks; a segmentor logits of the size of the image; a
classifier scores; a backbone, if it is asked for, its feature maps. The graph takes images as the
config's data preprocessor gives them, (N, 3, H, W), RGB, normalised, or as they are loaded; what
that means in numbers stands in the file. H and W are free, from 32 pixels up, and N, too, but for
a detector, which takes one image.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import os
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..engine.config import model_of
from ..engine.forms import fuse_model
from ..errors import UserError, describe
from ..prediction.predictor import building, load_model
from . import formats, matrix, tracing
from .facts import facts_of
from .formats import CheckError as CheckError
from .formats import Runner, Say
from .forms import Form, form_of
from .int8 import make_int8, photographs_for


@dataclass(frozen=True)
class Exported:
    """Describe a file that was written and checked.

    Attributes:
        path: of the file.
        names: of its outputs.
        facts: what the images are to be, and more, as they stand in the file.
        difference: the largest to PyTorch's outputs, over their largest value; of a detector's
            scores, as they are.
        milliseconds: of the file and of PyTorch for one image, where they were to be measured.
        agreement: of an int8 file with the float32 one, from 0 to 1; see `int8.compare`.
    """

    path: Path
    names: list[str]
    facts: dict[str, str]
    difference: float
    milliseconds: tuple[float, float] | None = None
    agreement: float | None = None


def export(
    model: Any,
    path: str | os.PathLike[str],
    checkpoint: str | None = None,
    *,
    backbone: bool = False,
    fused: bool = False,
    preprocess: bool = False,
    pasted: bool = False,
    photographs: str | os.PathLike[str] | None = None,
    tolerance: float = 1e-4,
    int8: str | os.PathLike[str] | None = None,
    measure_at: tuple[int, int] | None = None,
    say: Say = lambda line: None,
) -> Exported:
    """Export a model; the file gets its name once its outputs equal PyTorch's at several sizes.

    Args:
        model: a config, or a model as `init_model` and the like give it, or a HireMLPNet.
        path: file to write, `.onnx` or `.pt2`; it must not exist.
        checkpoint: weights for a config's model; random ones without it. A model has its own.
        backbone: of a whole model, the backbone alone.
        fused: export the exact inference form.
        preprocess: take images as they are loaded, (N, 3, H, W) of uint8, and normalise them in
            the graph.
        pasted: of a detector with masks, also give masks of the size of the image.
        photographs: folder of images to check a detector with; random ones without it.
        tolerance: largest difference to PyTorch's output, over its largest value; not for a
            detector, whose limits stand in `check`.
        int8: folder of photographs to calibrate an int8 file on, made from the file once its
            outputs equal PyTorch's; `.onnx` only.
        measure_at: height and width to measure the time at.
        say: is told how far it has come, in lines.

    Raises:
        UserError: an argument that cannot be, a package that is missing, or a model that cannot be
            exported, with the reason.
        CheckError: the file's outputs are not PyTorch's.
    """
    out = Path(path)
    check_target(out)
    images = None if int8 is None else photographs_for(out, int8)
    with torch.no_grad():
        whole, cfg, meta = prepared(model, checkpoint, backbone, say)
        form = form_of(whole, backbone, pasted)
        if form.model is not None:
            for sort in (out.suffix, *[matrix.INT8] * (images is not None)):
                matrix.check_standing(form.model, sort, say)
        if photographs is not None:
            check_photographs(Path(photographs), form.task)
        wanted = form_of(fuse_model(whole), backbone, pasted).module if fused else form.module
        tell = partial(facts_of, cfg, form.model, task=form.task, meta=meta)
        facts = tell(in_graph=preprocess) if cfg else dict(task=form.task)
        if images is not None and "resize" not in facts:
            why = facts.get("unknown_step", "a backbone alone, or a model without its config")
            raise UserError(f"int8: images to calibrate on cannot be prepared here ({why})")
        dtype, inside = torch.float32, as_it_is
        if preprocess:
            if form.model is None or not cfg:
                raise UserError("preprocessing in the graph is for whole models with their config")
            dtype, inside = torch.uint8, partial(Preprocessed, outside=tell())
        if form.task == "segmentation" and whole.test_cfg.get("mode") == "slide":
            say("warning: test_cfg.mode is slide: the file takes images whole, without windows")
        say("exporting; this may take a minute or two")
        # Beside its place, so that it gets its name in one step, and under a name nobody has.
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.") as folder:
            part = Path(folder, out.name)
            write(inside(wanted), form, facts, part, dtype, say)
            runner = formats.open_file(part)
            plain = inside(form.module)
            difference = check(runner, plain, form, dtype, photographs, tolerance, say)
            runners: list[Runner] = [runner, partial(by_pytorch, form, plain)]
            times = agreement = None
            if images is not None:
                quantised, agreement = make_int8(part, images, say)
                part, facts = Path(quantised.path), quantised.facts
                runners.insert(0, formats.open_file(part))
            if measure_at:
                times = measure(runners, measure_at, dtype, say)
            check_new(out)
            part.rename(out)
    return Exported(out, form.names, facts, difference, times, agreement)


def measure(
    runners: list[Runner], size: tuple[int, int], dtype: torch.dtype, say: Say
) -> tuple[float, float]:
    """Measure the milliseconds of the first runner, a file, and the last, PyTorch, at a size."""
    say("measuring the time at {} x {}".format(*size))
    first, *others = formats.times(runners, *size, dtype)
    if len(runners) > 2:
        say(f"the float32 file takes {others[0]:.0f} ms, int8 {first:.0f} ms")
    return first, others[-1]


def by_pytorch(form: Form, plain: nn.Module, image: Tensor) -> Any:
    """Run the model on an image: a detector by its host's `predict`, which is what people have."""
    if form.task != "detection":
        return formats.as_sequence(plain(image))
    from .check import predict_by_host

    return predict_by_host(form.model, image[0].permute(1, 2, 0).clamp(0, 255).byte().numpy())


def as_it_is(module: nn.Module) -> nn.Module:
    """Return a module."""
    return module


def check(
    runner: Runner,
    plain: nn.Module,
    form: Form,
    dtype: torch.dtype,
    photographs: str | os.PathLike[str] | None,
    tolerance: float,
    say: Say,
) -> float:
    """Compare a file with PyTorch, or with the host's detections; return the largest difference."""
    if form.task != "detection":
        return formats.compare(runner, plain, form.names, tolerance, say, dtype)
    from .check import compare_detections

    folder = None if photographs is None else Path(photographs)
    return compare_detections(runner, form, dtype is torch.uint8, folder, say).score


def check_target(out: Path) -> None:
    """Raise UserError unless a file of that name can be made, here and with this torch."""
    if out.suffix not in (".onnx", ".pt2"):
        raise UserError(f"{out}: expected a name that ends in .onnx or .pt2")
    check_new(out)
    if not out.parent.is_dir():
        raise UserError(f"folder {out.parent} not found; make it first")
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"folder {out.parent} cannot be written to; name a file in another")
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


def check_photographs(folder: Path, task: str) -> None:
    """Raise UserError unless a folder has photographs that can be read, and they are asked for."""
    if task != "detection":
        raise UserError(f"photographs are to check detectors with; what is exported is {task}")
    if not folder.is_dir():
        raise UserError(f"folder {folder} not found; name one with photographs")
    from .check import images_of

    for _ in images_of(folder):
        pass


def write(
    module: nn.Module,
    form: Form,
    facts: dict[str, str],
    path: Path,
    dtype: torch.dtype,
    say: Say,
) -> None:
    """Trace a module and write the graph, or raise UserError where that cannot be done."""
    start = time.perf_counter()
    free_batch = form.task != "detection"
    try:
        program = tracing.trace(module, free_batch, dtype)
        if path.suffix == ".onnx":
            formats.write_onnx(program, form.names, facts, path, free_batch)
        else:
            content = io.BytesIO()  # a full disk would end the process, if torch wrote there itself
            torch.export.save(program, content, extra_files={"facts.json": json.dumps(facts)})
            path.write_bytes(content.getbuffer())
    except OSError as error:
        raise UserError(f"{path.name} cannot be written: {describe(error)}") from error
    except Exception as error:  # whatever a head, or the exporter, raises
        reason = describe(first_cause(error))
        raise UserError(f"{path.name}: the model cannot be exported: {reason}") from error
    say(f"exported in {time.perf_counter() - start:.0f} s; checking the file")


def first_cause(error: BaseException) -> BaseException:
    """Return what an error was raised for: torch's last one says only in which step it was."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


# The model --------------------------------------------------------------------------------------


class Preprocessed(nn.Module):
    """Normalise an image as it is loaded, and run a module on it."""

    def __init__(self, module: nn.Module, outside: dict[str, str]) -> None:
        """Take a module, and the facts of a file that takes normalised images."""
        super().__init__()
        self.module = module
        self.flips = outside["channels"] == "RGB"  # images are loaded as BGR
        for name in ("mean", "std"):
            values = torch.tensor(json.loads(outside[name]), dtype=torch.float32)
            self.register_buffer(name, values.view(-1, 1, 1), persistent=False)

    def forward(self, image: Tensor) -> Any:
        """Run the module on images (N, 3, H, W) of numbers from 0 to 255."""
        image = image.float()
        image = image.flip(1) if self.flips else image
        mean: Any = self.mean
        return self.module((image - mean) / self.std)


def prepared(
    model: Any, checkpoint: str | None, backbone: bool, say: Say
) -> tuple[Any, Any, dict[str, Any]]:
    """Return a model for inference, its config, and what its weights say of their data set."""
    if isinstance(model, nn.Module):
        if checkpoint is not None:
            line = f"checkpoint {checkpoint}: the model given has its weights already"
            raise UserError(f"{line}; leave it out, or give the config in place of the model")
        cfg: Any = kept(model, "cfg", "_config")
        whole, meta = copy.deepcopy(model).cpu(), kept(model, "dataset_meta", "_dataset_meta") or {}
    else:
        cfg = copy.deepcopy(model)
        whole, meta = build(cfg, checkpoint, backbone, say)
    return whole.requires_grad_(False).eval(), cfg, meta


def kept(model: nn.Module, *names: str) -> Any:
    """Return what `init_model` of the hosts, or `get_model`, has kept in a model, or None."""
    return next((found for name in names if (found := getattr(model, name, None))), None)


def build(
    cfg: Any, checkpoint: str | None, backbone_only: bool, say: Say
) -> tuple[nn.Module, dict[str, Any]]:
    """Build the model of a config, or its backbone, with its weights; and what they say of data."""
    backbone: Any = cfg.model.get("backbone") or {}
    if str(backbone.get("type")).rpartition(".")[2] != "HireMLP":
        raise UserError(
            f"model.backbone of {cfg.filename} is {backbone.get('type')}; expected HireMLP, which "
            f"hire-mlp swap puts into a config"
        )
    backbone.init_cfg = None
    if checkpoint is not None and not backbone_only:
        return load_model(cfg, checkpoint)
    torch.manual_seed(0)
    with building(cfg):
        model = MODELS.build(backbone if backbone_only else model_of(cfg))
    if checkpoint is None:
        say("warning: no checkpoint given: the weights are random")
        randomize(model)
    else:
        model.load_pretrained(checkpoint)
    return model, {}


def randomize(model: nn.Module) -> None:
    """Draw weights that make every part of a network matter; fresh blocks add little.

    Without larger ones in the heads of two stages, no class of 80 would stand out.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) or (isinstance(module, nn.Linear) and "roi_head" in name):
            gain = 2.0 if "roi_head" in name else 0.5
            nn.init.normal_(module.weight, std=gain / module.weight[0].numel() ** 0.5)
        elif isinstance(module, _BatchNorm) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
