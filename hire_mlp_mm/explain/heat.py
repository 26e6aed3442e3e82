"""Explain the decisions of a detector, a segmentor or a classifier by heat maps."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..data.report import count
from ..errors import UserError
from ..hire_mlp import HireMLPNet
from ..prediction.base import Prediction, Prepared
from ..prediction.drawing import LEAST_NAMED
from ..prediction.predictor import Predictor
from ..prediction.results import Choice
from .panels import panels

LEAST_LOGIT = 1e-6  # keeps a score of 0 or 1 from having an infinite logit


@dataclass
class Heat:
    """Hold why a model finds a class in an image.

    Attributes:
        label, name: of the class.
        map: (H, W) float32 of the image's size, from 0 (no matter) to 1 (what matters most).
        title: what was found, in words.
        boxes: (n, 4), x1, y1, x2, y2; of a detector, those that were explained.
        area: (H, W) of bool; of a segmentor, the pixels that were explained.
    """

    label: int
    name: str
    map: np.ndarray
    title: str
    boxes: np.ndarray | None = None
    area: np.ndarray | None = None


class Explainer(Predictor):
    """Explain what a trained detector, segmentor or classifier of the hosts finds.

    It is called as a `Predictor` is. The results of an image are a list of `Heat`: one for each
    class that was found (of a classifier, the best), or for each that is asked for. What is
    explained is, of a detector, the sum of the logits of the scores of the boxes; of a segmentor,
    the mean logit of the class over the pixels that it has; of a classifier, the class's logit.

    LayerCAM looks at all levels of the neck; where there is none, and in a classifier, at HireMLP's
    last two stages, or at the maps that another backbone gives. (Nearer to the image, the strides
    of the layers after it show, as dots.) A segmentor runs on whole images, without windows.

    Examples:
        >>> for found in hire_mlp_mm.explain.Explainer("work_dirs/mine")("photographs"):
        ...     print(found.source.name, [(heat.title, heat.map.shape) for heat in found.results])
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        config: str | os.PathLike[str] | None = None,
        *,
        score_thr: float | None = None,
        classes: Sequence[str] | None = None,
        device: str | None = None,
        cfg_options: dict[str, Any] | None = None,
    ) -> None:
        """Load a model; see `Predictor`.

        Raises:
            UserError: torchcam is missing, or an argument, the checkpoint or the config cannot be
                used.
        """
        self.layer_cam = import_layer_cam()
        super().__init__(
            checkpoint,
            config,
            score_thr=score_thr,
            classes=classes,
            device=device,
            cfg_options=cfg_options,
        )
        model: Any = self.model
        if self.task == "segmentation":
            model.test_cfg.mode = "whole"
        model.requires_grad_(False)
        self.maps: list[Tensor] = []
        for module in watched(self):
            module.register_forward_hook(self.watch)

    def watch(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Note the maps of a module, and begin to follow gradients at them."""
        several = isinstance(output, (tuple, list))
        followed = [follow(one) for one in (output if several else [output])]
        self.maps += [one for one in followed if isinstance(one, Tensor) and one.dim() == 4]
        return type(output)(followed) if several else followed[0]

    def forward(self, batch: list[Prepared]) -> list[list[Heat]]:
        """Return the heat maps of a batch, which is of one image."""
        self.maps = []
        (one,) = batch
        scope = DefaultScope.overwrite_default_scope(self.scope)
        with scope, torch.enable_grad():
            model: Any = self.model
            data = model.data_preprocessor(pseudo_collate([one.data]), False)
            with Undetached():
                (given,) = model(**data, mode=MODES[self.task])
            targets = TARGETS[self.task](given, self.choice, self.classes)
            self.check(targets)
            sample, size = one.data["data_samples"], data["inputs"].shape[-2:]
            maps = self.heat_maps([score for score, _ in targets], size)
            for (_, heat), seen in zip(targets, maps, strict=True):
                scale = sample.metainfo.get("scale_factor", (1.0, 1.0))
                heat.map = put_back(seen, one.image.shape[:2], scale)
        self.maps = []
        return [[heat for _, heat in targets]]

    def check(self, targets: list[Target]) -> None:
        """Raise UserError where LayerCAM can say nothing of targets."""
        lacks = "" if self.maps else "neither neck nor backbone gives maps (N, C, H, W)"
        if not all(score.requires_grad for score, _ in targets):
            lacks = "its scores have no gradient, which something like no_grad() cuts off"
        if targets and lacks:
            kind = type(self.model).__name__
            raise UserError(f"{self.config}: {kind} cannot be explained by LayerCAM: {lacks}")

    def heat_maps(self, scores: list[Tensor], size: Any) -> Iterator[np.ndarray]:
        """Yield the heat map (h, w) of each score, from 0 to 1."""
        if not scores:
            return
        # A level that a score does not depend on has a gradient, too: zero.
        none = torch.stack([one.sum() * 0 for one in self.maps]).sum()
        table = torch.stack([score + none for score in scores])[None]
        levels = nn.ModuleList(nn.Identity() for _ in self.maps)
        with self.layer_cam(levels, list(levels)) as cam:
            for level, one in zip(levels, self.maps, strict=True):
                level(one)
            for i in range(len(scores)):
                layers = cam(class_idx=i, scores=table, retain_graph=True)
                seen = cam.fuse_cams(layers, tuple(size))[0].float().cpu().numpy()
                yield seen / max(float(seen.max()), 1e-12)

    def results_of(self, sample: list[Heat]) -> list[Heat]:
        """Return the heat maps."""
        return sample

    def draw(self, found: Prediction) -> np.ndarray:
        """Draw an image and its heat maps side by side: (H', W', 3) uint8, RGB."""
        colours = [self.palette[heat.label] for heat in found.results]
        return panels(found.image, found.results, colours)


def import_layer_cam() -> Any:
    """Import torchcam's LayerCAM, or raise UserError where it is missing."""
    try:
        from torchcam.methods import LayerCAM
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torchcam":
            raise
        raise UserError(
            "torchcam is not installed, and heat maps need it: pip install torchcam (Python 3.11 "
            "or later)"
        ) from error
    return LayerCAM


class Undetached(TorchFunctionMode):
    """Let gradients through `detach()`, which MMDetection's dense heads do to their scores."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.detach:
            return args[0]
        if func is Tensor.numpy:  # which would refuse a gradient
            args = (args[0].detach(), *args[1:])
        return func(*args, **(kwargs or {}))


def watched(predictor: Predictor) -> list[nn.Module]:
    """Return the modules of a model whose maps LayerCAM looks at; see `Explainer`."""
    neck = getattr(predictor.model, "neck", None)
    if predictor.task != "classification" and isinstance(neck, nn.Module):
        return [neck]
    backbone = backbone_of(predictor)
    return list(backbone.stages[-2:]) if isinstance(backbone, HireMLPNet) else [backbone]


def backbone_of(predictor: Predictor) -> nn.Module:
    """Return the backbone of a model, or raise UserError where it has none."""
    backbone = getattr(predictor.model, "backbone", None)
    if not isinstance(backbone, nn.Module):
        kind = type(predictor.model).__name__
        raise UserError(
            f"{predictor.config}: {kind} has no `backbone` to look at; name another model"
        )
    return backbone


def follow(output: Any) -> Any:
    """Return a tensor of numbers with a gradient, and what is none as it is."""
    if not isinstance(output, Tensor) or output.requires_grad or not output.is_floating_point():
        return output
    return output.detach().requires_grad_().clone()  # a leaf could not be changed in place


def put_back(seen: np.ndarray, shape: tuple[int, ...], scale: Sequence[float]) -> np.ndarray:
    """Put a map of what the network saw back into the image: (H, W), 0 where it saw nothing.

    Args:
        seen: (h, w) of the network's input: the image resized, then cropped at its middle, or
            padded at the right and the bottom.
        shape: (H, W) of the image.
        scale: of the width and the height in resizing.
    """
    sides = [max(1, round(side * by)) for side, by in zip(shape, scale[::-1], strict=True)]
    whole = np.zeros(sides, np.float32)
    y, x = (max(0, big - small) // 2 for big, small in zip(sides, seen.shape, strict=True))
    part = seen[: sides[0], : sides[1]]
    whole[y : y + part.shape[0], x : x + part.shape[1]] = part
    return cv2.resize(whole, shape[::-1], interpolation=cv2.INTER_LINEAR).clip(0, 1)


# Targets: what is explained, as (a score with a gradient, its heat map to be) --------------------

Target = tuple[Tensor, Heat]
NO_MAP = np.zeros((0, 0), np.float32)  # until there is one


def boxes_found(sample: Any, choice: Choice, classes: list[str]) -> list[Target]:
    """Take the boxes of each class, the logits of their scores added up."""
    found = sample.pred_instances
    labels = found.labels.cpu().numpy()
    kept = choice.order(found.scores.detach().float().cpu().numpy(), labels)
    targets = []
    for label in np.unique(labels[kept]).tolist():
        mine = kept[labels[kept] == label]
        score = torch.logit(found.scores[torch.from_numpy(mine)].float(), LEAST_LOGIT).sum()
        title = f"{classes[label]}: {count(len(mine), 'boxes')}"
        boxes = found.bboxes[torch.from_numpy(mine)].detach().float().cpu().numpy()
        targets.append((score, Heat(label, classes[label], NO_MAP, title, boxes)))
    return targets


def areas_found(sample: Any, choice: Choice, classes: list[str]) -> list[Target]:
    """Take the mean logit of each class over its pixels; classes of a few pixels are left out."""
    logits, labels = sample.seg_logits.data.float(), sample.pred_sem_seg.data[0]
    if len(logits) == 1:  # of a sigmoid head: the score of label 1, beside label 0
        logits = torch.logit(logits, LEAST_LOGIT)
        logits = torch.cat([-logits, logits])
    numbers = np.arange(min(len(logits), len(classes)))
    targets = []
    for label in numbers[choice.has(numbers)].tolist():
        area = labels == label
        share = float(area.float().mean())
        if share >= LEAST_NAMED:
            title = f"{classes[label]}: {100 * share:.0f}% of the pixels"
            heat = Heat(label, classes[label], NO_MAP, title, area=area.cpu().numpy())
            targets.append((logits[label][area].mean(), heat))
    return targets


def classes_found(logits: Tensor, choice: Choice, classes: list[str]) -> list[Target]:
    """Take the logit of the best class, or of each that is asked for."""
    best = int(logits.argmax())
    return [
        (logits[label].float(), Heat(label, classes[label], NO_MAP, classes[label]))
        for label in ([best] if choice.labels is None else choice.labels)
    ]


# What is asked of a model: its samples, or the logits of an image.
MODES = {"detection": "predict", "segmentation": "predict", "classification": "tensor"}
TARGETS: dict[str, Callable[[Any, Choice, list[str]], list[Target]]] = {
    "detection": boxes_found,
    "segmentation": areas_found,
    "classification": classes_found,
}
