"""Choose the export form of a model, or say why it has none.

A form repeats what methods of the host do, by operations that a graph can hold. So it stands for
models whose classes have not replaced these methods: functions such as `segmentor_needs` list them,
and a model that has a method of its own is refused by its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..engine.forms import Backbone
from ..errors import UserError

TASKS = {"mmdet": "detection", "mmseg": "segmentation", "mmpretrain": "classification"}


@dataclass(frozen=True)
class Form:
    """Hold what is exported of a model.

    Attributes:
        task: detection, segmentation, classification, or features of a backbone.
        module: runs from the normalised image to the outputs.
        names: of the outputs.
        model: of the host; None for a backbone.
    """

    task: str
    module: nn.Module
    names: list[str]
    model: Any = None


class NoFormError(UserError):
    """Report in one line why a model has no export form."""


def form_of(model: nn.Module, backbone: bool = False, pasted: bool = False) -> Form:
    """Return the form of a host's model, or of a HireMLPNet.

    Args:
        model: in evaluation mode.
        backbone: of a whole model, its backbone alone.
        pasted: of a detector with masks, also masks of the image's size.

    Raises:
        NoFormError: the model cannot be exported; UserError: masks that it has not got to paste.
    """
    inner = model if isinstance(model, Backbone) else getattr(model, "backbone", None)
    if not isinstance(inner, Backbone):
        raise UserError(f"{type(model).__name__} has no HireMLP as its backbone")
    if backbone or inner is model:
        return Form("features", inner, [f"stage{i}" for i in inner.out_indices])
    task = task_of(model)
    if pasted and task != "detection":
        raise UserError(f"pasted masks are for detectors; this is a {task} model")
    if task == "segmentation":
        check_methods(model, segmentor_needs())
        return Form(task, Segmentor(model), ["logits"], model)
    if task == "classification":
        check_methods(model, classifier_needs())
        return Form(task, Classifier(model), ["scores"], model)
    return form_of_detector(model, pasted)


def task_of(model: nn.Module) -> str:
    """Return the task of a host's model."""
    hosts = [kind.__module__.partition(".")[0] for kind in type(model).__mro__]
    for host, task in TASKS.items():
        if host in hosts:
            return task
    raise NoFormError(f"{type(model).__name__} is a model of none of {', '.join(TASKS)}")


# Segmentors and classifiers ----------------------------------------------------------------------


class Segmentor(nn.Module):
    """Run a segmentor of MMSegmentation from image to logits, as its whole inference does."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """Turn images (N, 3, H, W) into logits (N, classes, H, W)."""
        model: Any = self.model
        logits: Tensor = model.encode_decode(image, [dict(img_shape=image.shape[2:])])
        return logits


class Classifier(nn.Module):
    """Run a classifier of MMPretrain from image to scores."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """Turn images (N, 3, H, W) into scores (N, classes), which sum to 1."""
        model: Any = self.model
        scores: Tensor = model.head(model.extract_feat(image)).softmax(1)
        return scores


# Detectors ---------------------------------------------------------------------------------------


def form_of_detector(model: Any, pasted: bool) -> Form:
    """Return the form of a detector, or raise NoFormError."""
    from .detection import OneStage, TwoStage

    two_stages = hasattr(model, "roi_head")
    check_methods(model, two_stage_needs(model) if two_stages else one_stage_needs())
    for part, reason in unlike(model):
        raise NoFormError(f"{part}: {reason}")
    names = ["boxes", "scores", "labels"]
    masks = two_stages and model.roi_head.with_mask
    if pasted and not masks:
        raise UserError(f"pasted masks: {type(model).__name__} has no masks")
    names += ["masks"] * masks + ["pasted"] * pasted
    kind = TwoStage if two_stages else OneStage
    return Form("detection", kind(model, pasted), names, model)


# The part of the model, the classes whose method it is in the form, and the methods.
Need = tuple[str, tuple[type, ...], tuple[str, ...]]


def one_stage_needs() -> list[Need]:
    """List the methods for which `detection.OneStage` stands."""
    from mmdet.models.dense_heads import GFLHead
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    from mmdet.models.detectors import SingleStageDetector

    return [
        ("", (SingleStageDetector,), ("predict", "extract_feat")),
        ("bbox_head", (BaseDenseHead,), ("predict", "predict_by_feat", "_bbox_post_process")),
        ("bbox_head", (BaseDenseHead, GFLHead), ("_predict_by_feat_single",)),
    ]


def two_stage_needs(model: Any) -> list[Need]:
    """List the methods for which `detection.TwoStage` stands."""
    from mmdet.models.dense_heads import RPNHead
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    from mmdet.models.detectors import TwoStageDetector
    from mmdet.models.roi_heads import BBoxHead, CascadeRoIHead, FCNMaskHead, StandardRoIHead
    from mmdet.models.roi_heads import SingleRoIExtractor as Extractor
    from mmdet.models.roi_heads.base_roi_head import BaseRoIHead

    heads = (StandardRoIHead, CascadeRoIHead)
    needs: list[Need] = [
        ("", (TwoStageDetector,), ("predict", "extract_feat")),
        ("rpn_head", (BaseDenseHead,), ("predict", "predict_by_feat")),
        ("rpn_head", (RPNHead,), ("_predict_by_feat_single", "_bbox_post_process")),
        ("roi_head", (BaseRoIHead,), ("predict",)),
        ("roi_head", heads, ("predict_bbox", "_bbox_forward")),
        ("roi_head.bbox_head", (BBoxHead,), ("predict_by_feat", "_predict_by_feat_single")),
        ("roi_head.bbox_head", (BBoxHead,), ("regress_by_class",)),
        ("roi_head.bbox_roi_extractor", (Extractor,), ("forward", "map_roi_levels")),
    ]
    if getattr(model.roi_head, "with_mask", False):
        mask = ("predict_by_feat", "_predict_by_feat_single")
        needs += [
            ("roi_head", heads, ("predict_mask", "_mask_forward")),
            ("roi_head.mask_head", (FCNMaskHead,), mask),
            ("roi_head.mask_roi_extractor", (Extractor,), ("forward", "map_roi_levels")),
        ]
    return needs


def segmentor_needs() -> list[Need]:
    """List the methods for which `Segmentor` stands; it calls what is beneath them."""
    from mmseg.models.segmentors import EncoderDecoder

    return [("", (EncoderDecoder,), ("predict", "inference", "whole_inference"))]


def classifier_needs() -> list[Need]:
    """List the methods for which `Classifier` stands."""
    from mmpretrain.models import ClsHead, ImageClassifier

    return [
        ("", (ImageClassifier,), ("predict", "extract_feat")),
        ("head", (ClsHead,), ("predict", "_get_predictions")),
    ]


def check_methods(model: Any, needs: list[Need]) -> None:
    """Raise NoFormError where a class has replaced a method that the form repeats."""
    for part, owners, methods in needs:
        for one in parts(model, part):
            if one is None:
                raise NoFormError(f"{type(model).__name__} has no export form: it has no {part}")
            for method in methods:
                owner = next((c for c in type(one).__mro__ if method in vars(c)), None)
                if owner not in owners:
                    name = type(one).__name__
                    has = f"{method} is {owner.__name__}'s own" if owner else f"has no {method}"
                    raise NoFormError(
                        f"{name} has no export form: {has}; expected "
                        f"{' or '.join(c.__name__ for c in owners)}'s"
                    )


def parts(model: Any, dotted: str) -> list[Any]:
    """Return the part of a model by its dotted name; of a cascade, the parts of all stages."""
    for name in filter(None, dotted.split(".")):
        model = getattr(model, name, None)
    return list(model) if isinstance(model, nn.ModuleList) else [model]


def unlike(model: Any) -> Iterator[tuple[str, str]]:
    """Yield parts of a detector whose settings have no form, with the reason."""
    from mmdet.models.task_modules import DeltaXYWHBBoxCoder, DistancePointBBoxCoder

    coders = (DeltaXYWHBBoxCoder, DistancePointBBoxCoder)
    names = ("bbox_head", "rpn_head", "roi_head.bbox_head")
    for head in (one for name in names for one in parts(model, name) if one is not None):
        name = type(head).__name__
        if type(head.bbox_coder) not in coders:
            yield name, f"{type(head.bbox_coder).__name__} has no export form"
        loss = getattr(head, "loss_cls", None)
        if getattr(loss, "custom_cls_channels", False) or getattr(loss, "custom_activation", False):
            yield name, f"{type(loss).__name__} has an activation of its own"
    for head in (one for name in names[:2] for one in parts(model, name) if one is not None):
        yield from unlike_settings(type(head).__name__, head.test_cfg, before=True)
    heads = getattr(model, "roi_head", None)
    if heads is not None:
        yield from unlike_settings(type(heads).__name__, heads.test_cfg, before=False)
        if heads.with_mask and heads.test_cfg.mask_thr_binary < 0:
            yield type(heads).__name__, "test_cfg.mask_thr_binary: expected 0 or more"
        if heads.with_shared_head:
            yield type(heads).__name__, "its shared head has no export form"
        for extractor in parts(model, "roi_head.bbox_roi_extractor"):
            for layer in extractor.roi_layers:
                if type(layer).__name__ != "RoIAlign" or layer.pool_mode != "avg":
                    yield type(extractor).__name__, f"{layer} is not an averaging RoIAlign"


def unlike_settings(name: str, cfg: Any, before: bool) -> Iterator[tuple[str, str]]:
    """Yield what of a head's `test_cfg` has no form; `before` if it has a limit before the NMS."""
    nms = dict(cfg.get("nms") or {})
    unknown = set(nms) - {"type", "iou_threshold", "class_agnostic", "split_thr"}
    if nms.get("type", "nms") != "nms" or unknown or "iou_threshold" not in nms:
        yield name, f"test_cfg.nms={nms}: expected dict(type='nms', iou_threshold=...)"
    if cfg.get("max_per_img", -1) <= 0 or (before and cfg.get("nms_pre", -1) <= 0):
        yield name, "test_cfg: expected max_per_img and nms_pre above 0"
