"""Quantise an exported file: its layers compute in whole numbers of 8 bits.

onnxruntime's static quantisation makes the file, which onnxruntime and OpenVINO read. Weights
become int8, by output channel. What goes into a layer becomes uint8, over the range that it has on
photographs. All else stays float32, such as the decoding and the suppression of boxes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..data.listing import evenly
from ..errors import UserError, describe
from ..prediction.inputs import find_inputs, load_image, read_shots
from .formats import CheckError, Say
from .runtime import Outputs, Runtime

# What is quantised, but for those whose weights FLOAT finds, and the dimensions of its weights:
# onnxruntime fails on a product of batches, with weights of more.
LAYERS = {"Conv": 4, "Gemm": 2, "MatMul": 2}
# The last layer of each head. With RetinaNet's in int8, onnxruntime 1.23 had an AP of 0.02, not of
# 0.39. Stem, gates and first stage in float32 besides made no difference.
FLOAT = r"(cls|reg|centerness|logits|conv_seg|head\.fc)\.weight$"
IMAGES = 50  # photographs, at most
LEAST = 0.5  # agreement with float32; a file below it is no approximation
SURE = 0.3  # score from which on a box counts in the agreement

Images = Sequence[np.ndarray]


def make_int8(path: Path, images: Images, say: Say) -> tuple[Runtime, float]:
    """Write an int8 file beside a float32 one, and compare the two on photographs.

    Args:
        path: of an `.onnx` file of a whole model, whose facts `Runtime.check` approves.
        images: photographs like those that the model is for; see `photographs_for`.
        say: is told how far it has come, in lines.

    Returns:
        The int8 file, opened, in whose facts `int8` says how it was made, as JSON; and the
        agreement of the two from 0 to 1, see `compare`.

    Raises:
        UserError: the file cannot be quantised.
        CheckError: the int8 file fails, gives NaN, or hardly agrees with the other.
    """
    out, threads = path.with_name(f"int8.{path.name}"), torch.get_num_threads()
    exact = Runtime(path, threads=threads)
    say(f"quantising; calibrating on {len(images)} photographs")
    try:
        quantise(exact, out, images)
    except Exception as error:  # of many kinds
        raise UserError(f"{path.name} cannot be quantised: {describe(error)}") from error
    rough = Runtime(out, threads=threads)
    how = rough.fact("int8")
    kept = len(how["float_layers"])
    say(f"{how['layers']} layers are int8; {kept} stay float32, the last of each head")
    return rough, compare(exact, rough, images, say)


def photographs_for(out: Path, folder: str | os.PathLike[str]) -> Images:
    """Read at most `IMAGES` photographs of a folder, evenly chosen: (H, W, 3), uint8, BGR.

    Args:
        out: the file that is to be written.
        folder: of photographs, with the folders in it.

    Raises:
        UserError: the file is not to be `.onnx`, or there are no photographs.
        DataError: a photograph cannot be read.
    """
    if out.suffix != ".onnx":
        raise UserError(f"{out}: int8 is for ONNX; expected a name that ends in .onnx")
    if not os.path.isdir(folder):
        raise UserError(f"folder {folder} not found; name one with photographs to calibrate on")
    images = [one for one in find_inputs([folder]).sources if not one.is_video]
    if not images:
        raise UserError(f"{folder}: no photographs in it; expected a folder with images")
    chosen = [images[i] for i in evenly(len(images), IMAGES)]
    return [shot.results["img"] for shot in read_shots(chosen, load_image, refuse)]


def refuse(error: Exception) -> None:
    """Raise an error."""
    raise error


def short_name(weight: str) -> str:
    """Name a layer as the host's model does, by the name of its weight in the graph."""
    return weight.removeprefix("model.module.").removeprefix("model.").removesuffix(".weight")


class Photographs:
    """Hand photographs to onnxruntime's calibration, one by one, as the graph takes them."""

    def __init__(self, model: Runtime, images: Images) -> None:
        self.feeds = ({"image": model.prepare(image)} for image in images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next, or None at the end."""
        return next(self.feeds, None)


def quantise(model: Runtime, out: Path, images: Images) -> None:
    """Write an int8 file of what a runtime has opened, calibrated on images."""
    import onnx
    import onnxruntime  # type: ignore[import-untyped]
    import onnxruntime.quantization as q  # type: ignore[import-untyped]
    from onnxruntime.quantization import shape_inference

    # Folds BatchNorm into the convolutions; the weights keep their names.
    shape_inference.quant_pre_process(model.path, out, skip_symbolic_shape=True)
    graph = onnx.load(out)
    ranks = {one.name: len(one.dims) for one in graph.graph.initializer}
    nodes = [node for node in graph.graph.node if node.op_type in LAYERS]
    layers = [node for node in nodes if ranks.get(node.input[1]) == LAYERS[node.op_type]]
    chosen = [layer for layer in layers if not re.search(FLOAT, layer.input[1])]
    how = dict(
        library=f"onnxruntime {onnxruntime.__version__}",
        photographs=len(images),
        layers=len(chosen),
        float_layers=sorted({short_name(one.input[1]) for one in layers if one not in chosen}),
    )
    graph.metadata_props.add(key="int8", value=json.dumps(how))
    q.quantize_static(
        graph,
        out,
        Photographs(model, images),
        per_channel=True,
        activation_type=q.QuantType.QUInt8,
        weight_type=q.QuantType.QInt8,
        nodes_to_quantize=[layer.name for layer in chosen],
        op_types_to_quantize=list(LAYERS),
    )


# The comparison ---------------------------------------------------------------------------------


def compare(exact: Runtime, rough: Runtime, images: Images, say: Say) -> float:
    """Return the agreement of two files on images, or raise CheckError where there is little."""
    same, total = 0, 0
    for image in images:
        found = agreement(outcome(exact, image), outcome(rough, image))
        same, total = same + found[0], total + found[1]
    part = same / total if total else 1.0
    what = dict(detection="boxes", segmentation="pixels", classification="images")[exact.task]
    say(f"int8 agrees with float32 on {part:.2%} of {total} {what}, {len(images)} photographs")
    if part < LEAST:
        raise CheckError(f"int8 agrees with float32 on {part:.0%} of {what}; expected {LEAST:.0%}")
    return part


def outcome(model: Runtime, image: np.ndarray) -> Outputs:
    """Predict on an image, of a detector the boxes above `SURE`; raise CheckError for NaN."""
    prepared = model.prepare(image)
    try:
        outputs = model(prepared)
    except Exception as error:  # whatever the runtime raises
        raise CheckError(f"int8 fails on an image {image.shape}: {describe(error)}") from error
    for name, value in outputs.items():
        if not np.isfinite(value).all():
            raise CheckError(f"the {name} of int8 are not finite")
    (outputs,) = model.split(outputs)
    return model.finish(outputs, image.shape[:2], prepared.shape[2:], sure)


def sure(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the indices of the scores that count."""
    return (scores >= SURE).nonzero()[0]


def agreement(one: Outputs, other: Outputs) -> tuple[int, int]:
    """Count what two predictions have in common, and what there is.

    Of boxes, those of both sides that have a partner: same label, overlap of one half and more.
    Of labels, pixels; of scores, whether the best class is the same.
    """
    if "boxes" in one:
        from torchvision.ops import box_iou

        near = box_iou(*(torch.from_numpy(x["boxes"]) for x in (one, other))).numpy() >= 0.5
        near &= one["labels"][:, None] == other["labels"]
        return int(near.any(0).sum() + near.any(1).sum()), sum(near.shape)
    if "labels" in one:
        return int((one["labels"] == other["labels"]).sum()), one["labels"].size
    return int(one["scores"].argmax() == other["scores"].argmax()), 1
