"""Write, open, check and time exported files."""

from __future__ import annotations

import math
import operator
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import describe
from . import runtime
from .tracing import LEAST

CHECKED = ((1, 3, LEAST, LEAST), (3, 3, 75, 203), (2, 3, 224, 161))
RUNS = 5  # timed, of each
NEEDED = ("onnx", "onnxruntime", "onnxscript")

Runner = Callable[[Tensor], Sequence[Tensor]]
Say = Callable[[str], object]


class CheckError(Exception):
    """Report in one line that what was exported is not what it should be."""


def write_onnx(
    program: torch.export.ExportedProgram,
    names: list[str],
    facts: dict[str, str],
    path: Path,
    free_batch: bool,
) -> None:
    """Write a graph as ONNX, the weights inside."""
    from onnxscript import opset18

    def remainder(x, size):  # type: ignore[no-untyped-def]
        """Compute `x % size` of whole numbers; onnxscript's own takes no free size."""
        return opset18.Mod(x, opset18.CastLike(size, x))

    def at_most(x, limit):  # type: ignore[no-untyped-def]
        """Compute `x <= limit`; torch.export limits a sum of free lengths by more than int64."""
        limit = min(limit, torch.iinfo(torch.int64).max) if isinstance(limit, int) else limit
        return opset18.LessOrEqual(x, limit)

    sizes = {0: "batch", 2: "height", 3: "width"} if free_batch else {2: "height", 3: "width"}
    exported = torch.onnx.export(
        program,
        input_names=["image"],
        output_names=names,
        dynamic_shapes=(sizes,),
        custom_translation_table={
            torch.ops.aten.remainder.Scalar: remainder,
            operator.le: at_most,
        },
        dynamo=True,  # by way of torch.export; tracing once would keep sizes that stand in Python
        verbose=False,
    )
    assert exported is not None
    for node in exported.model.graph.all_nodes():
        node.metadata_props.clear()  # where in the code each came from, with this machine's paths
    exported.model.metadata_props.update(facts)
    exported.save(path)


def open_file(path: Path) -> Runner:
    """Open a file as a function from images to outputs, on PyTorch's number of threads."""
    if path.suffix == ".pt2":
        program = torch.export.load(path).module()
        return lambda image: as_sequence(program(image))
    run = runtime.open_onnxruntime(str(path), torch.get_num_threads()).run
    return lambda image: [torch.from_numpy(output) for output in run(image.numpy())]


def as_sequence(outputs: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    """Return outputs as a sequence, a single one, too."""
    return [outputs] if isinstance(outputs, Tensor) else outputs


def random_image(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Make a random image, of numbers as loaded (0 to 255, uint8) or as normalised."""
    if dtype is torch.uint8:
        return torch.randint(0, 256, tuple(shape), dtype=dtype)
    return torch.randn(*shape, dtype=dtype)


def compare(
    runner: Runner,
    model: nn.Module,
    names: list[str],
    tolerance: float,
    say: Say,
    dtype: torch.dtype = torch.float32,
) -> float:
    """Compare a file's outputs with PyTorch's at several sizes, or raise CheckError.

    Returns:
        The largest difference over the largest value.
    """
    torch.manual_seed(1)
    largest = 0.0
    for shape in CHECKED:
        image = random_image(shape, dtype)
        try:
            found = runner(image)
        except Exception as error:  # whatever the runtime raises
            raise CheckError(f"it fails on images {shape}: {describe(error)}") from error
        wanted = as_sequence(model(image))
        outputs = zip(names, found, wanted, strict=True)
        differences = {name: difference(*pair) for name, *pair in outputs}
        listed = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
        say(f"largest relative difference to PyTorch, images {shape}: {listed}")
        worst = max(differences, key=lambda name: differences[name])
        if not differences[worst] <= tolerance:  # which may be NaN
            raise CheckError(
                f"{worst} differs from PyTorch's by {differences[worst]:.1e} of its largest value "
                f"on images {shape}; expected at most {tolerance:.1e}"
            )
        largest = max(largest, differences[worst])
    return largest


def difference(found: Tensor, wanted: Tensor) -> float:
    """Return the largest difference over the largest value; infinite for another shape, or NaN."""
    if found.shape != wanted.shape:
        return math.inf
    part = float((found - wanted).abs().max() / wanted.abs().max())
    return math.inf if math.isnan(part) else part


def times(
    runners: Sequence[Runner], height: int, width: int, dtype: torch.dtype = torch.float32
) -> list[float]:
    """Measure the median milliseconds of each for one image; they take turns."""
    image = random_image((1, 3, height, width), dtype)
    seconds: list[list[float]] = [[] for _ in runners]
    for _ in range(RUNS + 1):  # the first is a warm-up
        for runner, own in zip(runners, seconds, strict=True):
            start = time.perf_counter()
            runner(image)
            own.append(time.perf_counter() - start)
    return [1000 * statistics.median(own[1:]) for own in seconds]
