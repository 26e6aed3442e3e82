"""Run an exported file by onnxruntime or OpenVINO, without torch and without OpenMMLab.

    import cv2
    from hire_mlp_mm.deploy.runtime import Runtime

    model = Runtime("mask_rcnn.onnx")
    found = model.predict(cv2.imread("street.jpg"))
    print(found["boxes"], found["scores"], [model.classes[i] for i in found["labels"]])

What the file takes and gives stands in its metadata, which `facts.py` writes. Images are prepared,
and results brought back to their size, in the arithmetic of mmcv and the hosts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from ..errors import UserError, describe

TASKS = ("detection", "segmentation", "classification")
CV2 = dict(
    nearest=cv2.INTER_NEAREST,
    bilinear=cv2.INTER_LINEAR,
    bicubic=cv2.INTER_CUBIC,
    area=cv2.INTER_AREA,
    lanczos=cv2.INTER_LANCZOS4,
)

Outputs = dict[str, np.ndarray]
Keep = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Runtime:
    """Run an exported file on the CPU.

    Attributes:
        path: of the file.
        task: `detection`, `segmentation` or `classification`; `features` of a backbone alone.
        facts: the file's metadata, texts by their names.
        classes: names, in the order of the labels.
        names: of the outputs.
        dtype: of the images that the graph takes, uint8 or float32.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        engine: str = "onnxruntime",
        threads: int | None = None,
        dtype: str = "float32",
    ) -> None:
        """Open a file.

        Args:
            path: an `.onnx` file that `hire-mlp export` has written.
            engine: `onnxruntime` or `openvino`.
            threads: of the engine; None for as many as it takes by itself.
            dtype: in which to compute: `float32`, or of OpenVINO `bfloat16`.

        Raises:
            UserError: the file cannot be opened, or the engine is unknown or not installed, or does
                not compute in that type.
        """
        self.path = os.fspath(path)
        if engine not in ENGINES:
            raise UserError(f"engine {engine}: expected one of {', '.join(ENGINES)}")
        opens, dtypes = ENGINES[engine]
        if dtype not in dtypes:
            hint = "; openvino computes in bfloat16" if dtype == "bfloat16" else ""
            raise UserError(f"{engine} in {dtype}: expected {' or '.join(dtypes)}{hint}")
        if not os.path.isfile(self.path):
            raise UserError(f"exported file {self.path} not found")
        try:
            self.names, self.dtype, self.facts, self.run = opens(self.path, threads, dtype)
        except ImportError as error:
            cure = f"pip install {engine}"
            raise UserError(f"{self.path} needs {engine} to run ({error}): {cure}") from error
        except Exception as error:  # of many kinds
            line = f"{self.path} cannot be opened by {engine}"
            raise UserError(f"{line}: {describe(error)}") from error
        self.task = self.facts.get("task", "")
        self.classes: list[str] = self.fact("classes", [])

    def fact(self, name: str, default: Any = None) -> Any:
        """Read a fact that is JSON, or raise UserError."""
        try:
            return json.loads(self.facts[name]) if name in self.facts else default
        except ValueError as error:
            line = f"{self.path}: its {name} cannot be read ({error}); export it anew"
            raise UserError(line) from error

    def __call__(self, images: np.ndarray) -> Outputs:
        """Run the graph on prepared images (N, 3, H, W), N = 1 for a detector.

        Raises:
            UserError: the images are of another shape or type.
        """
        if not isinstance(images, np.ndarray) or images.ndim != 4 or images.dtype != self.dtype:
            raise UserError(
                f"{self.path}: expected images (N, 3, H, W) of {self.dtype}; found {told(images)}"
            )
        return dict(zip(self.names, self.run(images), strict=True))

    def predict(self, image: np.ndarray, keep: Keep | None = None) -> Outputs:
        """Predict on an image (H, W, 3) of uint8, BGR, as `cv2.imread` gives it.

        Args:
            image: of any size.
            keep: given the scores and labels of boxes, returns the indices of those that are
                wanted, before their masks are made large; None for all.

        Returns:
            `boxes` (n, 4), x1 y1 x2 y2 in the image's pixels, `scores` (n), `labels` (n), and
            `masks` (n, H, W) of bool, if there are any; or `labels` (H, W); or `scores` (classes).

        Raises:
            UserError: the file is a backbone, or its images are prepared by an unknown step.
        """
        prepared = self.prepare(image)
        (outputs,) = self.split(self(prepared))
        return self.finish(outputs, image.shape[:2], prepared.shape[2:], keep)

    def check(self) -> None:
        """Raise UserError unless the file can predict on images as they are loaded."""
        if not self.task:
            raise UserError(
                f"{self.path} does not say its task; expected a file that hire-mlp export wrote"
            )
        if self.task not in TASKS:
            raise UserError(
                f"{self.path} is a backbone alone and predicts nothing; export the whole model"
            )
        if "resize" not in self.facts:
            step = self.facts.get("unknown_step", "it does not say how")
            raise UserError(
                f"{self.path}: its images cannot be prepared here as for the checkpoint ({step}); "
                f"prepare them yourself and call hire_mlp_mm.deploy.runtime.Runtime on the arrays"
            )

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Turn an image (H, W, 3) of uint8, BGR, into (1, 3, h, w) as the graph takes it."""
        self.check()
        array = isinstance(image, np.ndarray)
        if not array or image.shape[2:] != (3,) or image.dtype != np.uint8:
            raise UserError(f"expected an image (H, W, 3) of uint8, BGR; found {told(image)}")
        for step in self.fact("resize"):
            image = STEPS[step["type"]](image, step)
        image = image[..., ::-1] if self.facts.get("channels") == "RGB" else image
        planes = np.ascontiguousarray(image.transpose(2, 0, 1)[None]).astype(self.dtype)
        if self.facts.get("preprocess") != "in the graph":
            mean, std = (np.float32(self.fact(key)).reshape(-1, 1, 1) for key in ("mean", "std"))
            planes = (planes - mean) / std
        return planes

    def split(self, outputs: Outputs) -> list[Outputs]:
        """Part outputs by their images; those of a detector are of one."""
        if self.task == "detection":
            return [outputs]
        count = len(outputs[self.names[0]])
        return [{name: value[i] for name, value in outputs.items()} for i in range(count)]

    def finish(
        self,
        outputs: Outputs,
        size: tuple[int, ...],
        prepared: tuple[int, ...],
        keep: Keep | None = None,
    ) -> Outputs:
        """Bring the outputs for an image to its own size; see `predict`.

        Args:
            outputs: one of `split`.
            size: height and width of the image.
            prepared: height and width of what `prepare` has made of it.
            keep: see `predict`.
        """
        if self.task == "segmentation":
            corners, least = self.fact("align_corners", False), self.fact("threshold", 0.5)
            return dict(labels=label_map(outputs["logits"], size, corners, least))
        if self.task == "classification":
            return outputs
        index = keep(outputs["scores"], outputs["labels"]) if keep else slice(None)
        found = {name: outputs[name][index] for name in ("boxes", "scores", "labels")}
        (height, width), (h, w) = size, prepared
        found["boxes"] = found["boxes"] / np.array([w / width, h / height] * 2, np.float32)
        if "masks" in outputs:
            masks = zip(outputs["masks"][index], found["boxes"], strict=True)
            least = self.fact("mask_thr", 0.5)
            pasted = [paste(mask, box, size, least) for mask, box in masks]
            found["masks"] = np.array(pasted, bool).reshape(-1, *size)
        return found


# Engines ----------------------------------------------------------------------------------------


class Opened(NamedTuple):
    """Hold what an engine makes of a file; see `Runtime`."""

    names: list[str]
    dtype: np.dtype
    facts: dict[str, str]
    run: Callable[[np.ndarray], Sequence[np.ndarray]]


def open_onnxruntime(path: str, threads: int | None, dtype: str = "float32") -> Opened:
    """Open a file by onnxruntime."""
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 4  # what fails is raised
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    return Opened(
        [output.name for output in session.get_outputs()],
        np.dtype(np.uint8 if image.type == "tensor(uint8)" else np.float32),
        session.get_modelmeta().custom_metadata_map,
        lambda images: session.run(None, {image.name: images}),
    )


def open_openvino(path: str, threads: int | None, dtype: str = "float32") -> Opened:
    """Open a file by OpenVINO."""
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    # Where a CPU has bfloat16, OpenVINO takes it unless it is told otherwise.
    options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": PRECISIONS[dtype]}
    options.update({"INFERENCE_NUM_THREADS": threads} if threads else {})
    compiled = core.compile_model(model, "CPU", options)
    facts = model.get_rt_info(["framework"]).astype(dict) if model.has_rt_info("framework") else {}
    return Opened(
        [output.any_name for output in compiled.outputs],
        compiled.input(0).element_type.to_dtype(),
        {name: value.astype(str) for name, value in facts.items()},
        lambda images: list(compiled(images).values()),
    )


PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
# What opens a file, and the types in which it computes.
ENGINES = {
    "onnxruntime": (open_onnxruntime, ("float32",)),
    "openvino": (open_openvino, tuple(PRECISIONS)),
}


def told(image: Any) -> str:
    """Say what was given in the place of an image."""
    if image is None:
        return "None, which cv2.imread gives where it cannot read a file"
    array = isinstance(image, np.ndarray)
    return f"{image.shape} of {image.dtype}" if array else type(image).__name__


# The steps of a test pipeline, with the arguments that they have there --------------------------


def resize(image: np.ndarray, step: dict[str, Any]) -> np.ndarray:
    """Resize (H, W, 3) as the `Resize` of mmcv and the hosts."""
    height, width = image.shape[:2]
    scale = step.get("scale")
    if scale is None:
        w, h = pair(step["scale_factor"])
        scale = int(width * w + 0.5), int(height * h + 0.5)
    w, h = pair(scale)
    if step.get("keep_ratio"):
        ratio = min(max(w, h) / max(width, height), min(w, h) / min(width, height))
        w, h = int(width * ratio + 0.5), int(height * ratio + 0.5)
    return stretch(image, (w, h), step)


def pair(size: Any) -> Any:
    """Return a size for width and height, where one stands for both."""
    return size if isinstance(size, (list, tuple)) else (size, size)


def resize_edge(image: np.ndarray, step: dict[str, Any]) -> np.ndarray:
    """Resize (H, W, 3) as MMPretrain's `ResizeEdge`, one edge to a length."""
    height, width = image.shape[:2]
    scale, edge = step["scale"], step.get("edge", "short")
    by_width = dict(short=width < height, long=width > height, width=True, height=False)[edge]
    size = (
        (scale, int(scale * height / width)) if by_width else (int(scale * width / height), scale)
    )
    return stretch(image, size, step)


def stretch(image: np.ndarray, size: tuple[int, int], step: dict[str, Any]) -> np.ndarray:
    """Resize (H, W, 3) to width and height, by the step's `backend` and `interpolation`."""
    method = step.get("interpolation", "bilinear")
    if step.get("backend") == "pillow":
        return np.asarray(Image.fromarray(image).resize(size, Image.Resampling[method.upper()]))
    return cv2.resize(image, size, interpolation=CV2[method])


def centre_crop(image: np.ndarray, step: dict[str, Any]) -> np.ndarray:
    """Crop (H, W, 3) as mmcv's `CenterCrop`; a small image stays as it is."""
    for axis, limit in enumerate(reversed(pair(step["crop_size"]))):
        start = max(0, round((image.shape[axis] - limit) / 2))
        image = image.take(range(start, min(image.shape[axis], start + limit)), axis)
    return image


STEPS = {"Resize": resize, "ResizeEdge": resize_edge, "CenterCrop": centre_crop}

# Results, of the image's own size ---------------------------------------------------------------


def label_map(
    logits: np.ndarray, size: tuple[int, ...], align_corners: bool, threshold: float
) -> np.ndarray:
    """Return the labels (H, W) of logits (classes, h, w), as MMSegmentation's postprocessing.

    Class by class, so that a large image with many classes needs no memory for all of them.
    """
    planes = (enlarge(plane, size, align_corners) for plane in logits)
    best = next(planes)
    if len(logits) == 1:
        return (1 / (1 + np.exp(-best)) > threshold).astype(np.uint16)
    labels = np.zeros(size, np.uint16)
    for label, plane in enumerate(planes, start=1):
        labels[plane > best] = label
        best = np.maximum(best, plane)
    return labels


def enlarge(plane: np.ndarray, size: tuple[int, ...], align_corners: bool) -> np.ndarray:
    """Resize (h, w) bilinearly to `size`, height and width, as torch does."""
    if plane.shape == size:
        return plane
    if align_corners:  # which OpenCV does not do
        return between(between(plane, size[0]).T, size[1]).T
    return cv2.resize(plane, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def between(rows: np.ndarray, count: int) -> np.ndarray:
    """Interpolate `count` rows, evenly from the first to the last of some."""
    at = np.arange(count) * ((len(rows) - 1) / max(count - 1, 1))
    low = at.astype(int)
    part = (at - low).astype(np.float32)[:, None]
    return rows[low] * (1 - part) + rows[np.minimum(low + 1, len(rows) - 1)] * part


def paste(mask: np.ndarray, box: np.ndarray, size: tuple[int, ...], threshold: float) -> np.ndarray:
    """Paste the probabilities (h, w) within a box into an image (H, W) of bool, as MMDetection.

    Bilinear sampling is a product with a small matrix for each axis.
    """
    whole = np.zeros(size, bool)
    low = np.maximum(np.floor(box[:2]).astype(int) - 1, 0)
    high = np.minimum(np.ceil(box[2:]).astype(int) + 1, size[::-1]).clip(low)
    columns, rows = (
        weights(np.arange(low[i], high[i], dtype=np.float32), box[i], box[i + 2], mask.shape[1 - i])
        for i in (0, 1)
    )
    whole[low[1] : high[1], low[0] : high[0]] = rows @ mask @ columns.T >= threshold
    return whole


def weights(pixels: np.ndarray, low: float, high: float, count: int) -> np.ndarray:
    """Weigh `count` values that lie evenly from `low` to `high`, at pixels (n): (n, count)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        at = (pixels + np.float32(0.5) - low) / (high - low) * 2 - 1
    at[np.isinf(at)] = 0  # of a box without a width, as MMDetection has it
    at = ((at + 1) * count - 1) / 2
    near = 1 - np.abs(at[:, None] - np.arange(count, dtype=np.float32))
    return np.maximum(np.nan_to_num(near), 0)
