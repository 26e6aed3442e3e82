"""Say what an exported file takes and gives, from a config and a model, for `runtime.py`.

The facts stand in the metadata of the file, texts by their names:

    task                  detection, segmentation, classification; features of a backbone alone
    image, channels       what the graph takes, and the order of the colours there
    preprocess, mean, std `in the graph`, or `outside`: (image - mean) / std
    resize                the steps before it: a JSON list of steps of the test pipeline
    unknown_step          in place of it, the first step that `runtime.py` does not know
    classes, palette      JSON lists
    score_thr, mask_thr   of a detector
    align_corners, threshold  of a segmentor: how logits grow; of one output, from where it is 1
    config, versions      where the file is from
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ..data.palette import palette_for
from ..engine.harden import last_name
from ..prediction.predictor import names_of, tested_dataset

# The steps that `runtime.py` knows, with their arguments, and arguments that change no image.
KNOWN = {
    "Resize": ("scale", "scale_factor", "keep_ratio", "interpolation", "backend"),
    "ResizeEdge": ("scale", "edge", "interpolation", "backend"),
    "CenterCrop": ("crop_size",),
}
WITHOUT_EFFECT = ("type", "clip_object_border", "auto_pad", "pad_cfg")  # auto_pad if it is False
# Loading as it is without arguments.
PLAIN = dict(to_float32=False, color_type="color", imdecode_backend="cv2")
STEPS_OF = dict(segmentation=("Resize",), detection=("Resize",), classification=tuple(KNOWN))


def facts_of(
    cfg: Any,
    model: Any = None,
    *,
    task: str = "features",
    in_graph: bool = False,
    meta: dict[str, Any] | None = None,
) -> dict[str, str]:
    """Describe an exported file.

    Args:
        cfg: of the model.
        model: of the host, whose heads tell how many classes there are; None of a backbone.
        task: see above.
        in_graph: the graph normalises, and takes images as they are loaded.
        meta: what the checkpoint says of its data set: `classes`, `palette`.
    """
    preprocessor = cfg.model.get("data_preprocessor") or cfg.get("data_preprocessor") or {}
    # The hosts turn the channels round, whatever they call it.
    rgb = any(preprocessor.get(key) for key in ("bgr_to_rgb", "rgb_to_bgr", "to_rgb"))
    shape = f"({'1' if task == 'detection' else 'N'}, 3, H, W)"
    facts = dict(
        task=task,
        image=f"{shape}, 0 to 255" if in_graph else f"{shape}, float32, (image - mean) / std",
        preprocess="in the graph" if in_graph else "outside",
        channels="RGB" if rgb and not in_graph else "BGR",
        mean=json.dumps(preprocessor.get("mean") or [0, 0, 0]),
        std=json.dumps(preprocessor.get("std") or [1, 1, 1]),
        versions=versions(cfg),
    )
    if cfg.filename:
        facts["config"] = Path(cfg.filename).name
    if task != "features":
        facts |= preparation(cfg, task, preprocessor) | meaning(cfg, model, task, meta or {})
    return facts


def versions(cfg: Any) -> str:
    """Name the versions of what has made the file."""
    names = ("hire_mlp_mm", "torch", cfg.default_scope)
    modules = [sys.modules[name] for name in names if name in sys.modules]
    return ", ".join(f"{module.__name__} {module.__version__}" for module in modules)


def preparation(cfg: Any, task: str, preprocessor: Any) -> dict[str, str]:
    """Say how images are prepared, or by what unknown step."""
    steps = []
    for step in tested_dataset(cfg).get("pipeline") or [dict(type="no test pipeline")]:
        name = last_name(step["type"])
        if (name.startswith("Load") and "Image" not in name) or name.startswith("Pack"):
            continue
        if odd := oddity(step, name, task):
            return dict(unknown_step=odd)
        if name in KNOWN:
            given = {key: step[key] for key in KNOWN[name] if step.get(key) is not None}
            steps.append(dict(type=name) | given)
    padding = preprocessor.get("test_cfg") or (preprocessor.get("pad_size_divisor") or 1) > 1
    if padding and task != "detection":  # whose graph pads
        return dict(unknown_step="padding by data_preprocessor")
    return dict(resize=json.dumps(steps))


def oddity(step: Any, name: str, task: str) -> str | None:
    """Name a step, with its argument if that is at fault, that the runtime does not know."""
    if name == "LoadImageFromFile":
        odd = [key for key in PLAIN if step.get(key, PLAIN[key]) != PLAIN[key]]
    elif name in STEPS_OF[task]:
        known = (*KNOWN[name], *WITHOUT_EFFECT)
        odd = [key for key in step if key not in known or (key == "auto_pad" and step[key])]
    else:
        return name
    return f"{name}({odd[0]}={step[odd[0]]})" if odd else None


def meaning(cfg: Any, model: Any, task: str, meta: dict[str, Any]) -> dict[str, str]:
    """Say what the outputs mean."""
    classes = names_of(meta, cfg, model)
    facts = dict(
        classes=json.dumps(classes, ensure_ascii=False),
        palette=json.dumps(palette_for(meta.get("palette"), len(classes))),
    )
    if task == "detection":
        limits = cfg.model.get("test_cfg") or {}
        limits = limits.get("rcnn") or limits
        facts["score_thr"] = str(limits.get("score_thr", 0.0))
        facts["mask_thr"] = str(limits.get("mask_thr_binary", 0.5))
    if task == "segmentation":
        facts["align_corners"] = json.dumps(bool(getattr(model, "align_corners", False)))
        threshold = getattr(getattr(model, "decode_head", None), "threshold", None)
        facts |= {} if threshold is None else dict(threshold=json.dumps(threshold))
    return facts
