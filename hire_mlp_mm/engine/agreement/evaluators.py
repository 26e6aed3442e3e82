"""Compare evaluators with the data that they judge, and what hooks look for with what they give."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

from ...data.report import few
from ..guarded.samples import steps
from .classes import heads
from .sides import Judge, Run, Side, classes_of, is_a, options_at

# COCO's annotation files ------------------------------------------------------------------------


def categories(run: Run) -> Iterator[str]:
    """Compare a metric's categories with the classes: it numbers them as they stand in its file."""
    for judge in run.judges:
        if not judge.ann_file:
            continue
        classes = classes_of(judge.dataset)
        found = judge.content.get("categories") or []
        if judge.options.get("sort_categories"):
            found = sorted(found, key=lambda one: one["id"])
        names = [one.get("name") for one in found]
        used = [name for name in names if name in classes]
        where = f"{judge.key}.ann_file {judge.ann_file}"
        if missing := [name for name in classes if name not in names]:
            yield (
                f"{where} has no category {few(missing)}, and {judge.dataset_key} has that class; "
                f"set it to the file of the data set{own_file(judge)}"
            )
        elif classes and used != list(classes):
            yield (
                f"{where} has the categories {few(used)}, and {judge.dataset_key} the classes "
                f"{few(classes)}: labels would take each other's names; bring them into one order, "
                f"or set it to the file of the data set{own_file(judge)}"
            )


def own_file(judge: Judge) -> str:
    """Name the annotation file of a data set, where it is a single one."""
    path = getattr(judge.dataset, "ann_file", "")
    return f", {path}" if path else ""


def images(run: Run) -> Iterator[str]:
    """Compare a metric's images with those of the data set: it looks for predictions on each."""
    for judge in run.judges:
        had = images_of(judge.dataset) if judge.ann_file else None
        if had is None:
            continue
        listed = {one.get("id"): one for one in judge.content.get("images") or []}
        where = f"{judge.key}.ann_file {judge.ann_file}"
        if len(judge.dataset) > len(had):
            yield (
                f"{judge.dataset_key} has {len(judge.dataset)} samples of {len(had)} images, and "
                f"{judge.key} would count what is found in an image as often as it comes: have "
                "each image in it once"
            )
            continue
        absent = [i for i, info in had.items() if i not in listed or differs(info, listed[i])]
        if absent:
            yield (
                f"{where} lacks {len(absent)} of the {len(had)} images of {judge.dataset_key}, "
                f"such as {had[absent[0]].get('img_path', absent[0])}; set it to the file of the "
                f"data set{own_file(judge)}"
            )
        elif len(listed) > len(had):
            yield (
                f"{where} lists {len(listed)} images, and {judge.dataset_key} has {len(had)} of "
                f"them: the objects of the others would count as missed; {narrowed(run, judge)}"
            )


def images_of(dataset: Any) -> dict[Any, dict[str, Any]] | None:
    """Return what a data set knows of its images, by their id; None where it does not say."""
    if not hasattr(dataset, "get_data_info"):
        return None
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    return {info["img_id"]: info for info in infos} if all("img_id" in i for i in infos) else None


def differs(info: dict[str, Any], record: dict[str, Any]) -> bool:
    """Tell whether an image of a data set is another one than a file's of the same id.

    Splits that number their images from 1 have the same ids.
    """
    name, path = record.get("file_name"), info.get("img_path")
    if name and path and PurePath(str(name)).stem != PurePath(path).stem:
        return True
    return any(info.get(key, record.get(key)) != record.get(key) for key in ("height", "width"))


def narrowed(run: Run, judge: Judge) -> str:
    """Say which key leaves images out of a data set."""
    options = options_at(run.cfg, judge.dataset_key)
    loader = judge.dataset_key.partition(".")[0]
    if options.get("indices") is not None:
        return f"leave out {judge.dataset_key}.indices, or list those images alone in the file"
    if options_at(run.cfg, loader).get("num_batch_per_epoch"):
        return f"leave out {loader}.num_batch_per_epoch"
    if options.get("filter_cfg") and not options.get("test_mode"):
        return f"set {judge.dataset_key}.test_mode=True, which leaves out its filter_cfg"
    return f"set it to the file of the data set{own_file(judge)}"


# Samples ----------------------------------------------------------------------------------------


def one_description(run: Run) -> Iterator[str]:
    """Find evaluators that are given a description for each of several data sets."""
    for side in run.sides:
        metainfo = getattr(side.loader.dataset, "metainfo", None)
        if not isinstance(metainfo, (list, tuple)) or side.evaluator is None:
            continue
        if hasattr(side.evaluator, "dataset_prefixes"):  # one that takes them
            continue
        keys = sorted({key for one in metainfo for key in one})
        odd = [key for key in keys if any(one.get(key) != metainfo[0].get(key) for one in metainfo)]
        yield (
            f"the data sets within {side.key} have another metainfo each ({few(odd)}), and "
            f"{side.split}_evaluator takes one: set the same metainfo in all of them"
        )


def boxes_of_samples(run: Run) -> Iterator[str]:
    """Find metrics without a file of their own whose samples bring no boxes along."""
    for judge in run.judges:
        lacks_file = judge.is_coco and not judge.ann_file
        for step in steps(getattr(judge.dataset, "pipeline", [])) if lacks_file else []:
            keys = getattr(step, "meta_keys", ())
            if is_a(step, "PackDetInputs") and "instances" not in keys:
                yield (
                    f"{judge.key} ({type(judge.metric).__name__}) has no ann_file, and the samples "
                    f"of {judge.dataset_key} ({type(judge.dataset).__name__}) bring no boxes: set "
                    f"{judge.key}.ann_file to a COCO file, use the metric of the data set's format "
                    "(VOCMetric), or add 'instances' to meta_keys of its PackDetInputs"
                )


def masks(run: Run) -> Iterator[str]:
    """Find metrics of masks over a model that gives none."""
    for judge in run.judges:
        asked = is_a(judge.metric, "CocoMetric") and "segm" in getattr(judge.metric, "metrics", ())
        if asked and gives_no_masks(run.model):
            yield (
                f"{judge.key} asks for 'segm', and the model ({type(run.model).__name__}) gives no "
                f"masks: set {judge.key}.metric=bbox"
            )


def gives_no_masks(model: Any) -> bool:
    """Tell whether a model is a detector of which no part is about masks."""
    if not hasattr(model, "bbox_head") and not hasattr(model, "roi_head"):
        return False
    parts = [f"{path} {type(part).__name__}" for path, part in model.named_modules()]
    return not any("mask" in part.lower() for part in parts[1:])


def first_of_few(run: Run) -> Iterator[str]:
    """Compare the k of top-k accuracies with the number of classes."""
    head = getattr(run.model, "head", None)
    number = next((count for path, _, count in heads(run.model) if path == "head"), 0)
    asked = [
        (f"{judge.key}.topk", judge.metric.topk)
        for judge in run.judges
        if type(judge.metric).__name__ == "Accuracy"
    ]
    if run.side("train") is not None and getattr(head, "cal_acc", False):
        asked.append(("model.head.topk", getattr(head, "topk", ())))
    for key, given in asked:
        ks = [given] if isinstance(given, int) else list(given)
        if number and max(ks, default=0) > number:
            fitting = [k for k in ks if k <= number] or [1]
            yield (
                f"{key} asks for the accuracy of the first {max(ks)}, and model.head has {number} "
                f"classes: set {key}={fitting}"
            )


def ignored_labels(run: Run) -> Iterator[str]:
    """Compare the label that a data set ignores with that of heads and metrics."""
    # 255 is what data sets have where nothing is said; heads may ignore another label with it.
    said = [
        (key, part.ignore_index)
        for key, part in run.parts
        if hasattr(part, "reduce_zero_label") and part.ignore_index != 255
    ]
    for key, label in said[:1]:
        for user, other in ignoring(run):
            if other != label:
                yield f"{key} ignores label {label}, and {user} {other}: set {user}.ignore_index"


def ignoring(run: Run) -> Iterator[tuple[str, int]]:
    """Yield (key, label that it ignores) of each head and metric of segmentation."""
    for path, part in run.model.named_modules():
        if is_a(part, "BaseDecodeHead") and not is_a(part, "STDCHead"):
            yield f"model.{path}", part.ignore_index
    for judge in run.judges:
        if type(judge.metric).__name__ == "IoUMetric":
            yield judge.key, judge.metric.ignore_index


def ignored_classes(run: Run) -> Iterator[str]:
    """Find heads and metrics that ignore another label than the data sets do."""
    said = [(key, part) for key, part in run.parts if hasattr(part, "reduce_zero_label")]
    for key, part in said[:1]:
        names = classes_of(part)
        for user, other in ignoring(run) if part.ignore_index == 255 else ():
            if other != 255:
                what = f", the class {names[other]}" if 0 <= other < len(names) else ""
                yield (
                    f"{user} ignores label {other}{what}, and {key} 255: set {user}.ignore_index, "
                    "unless that is meant"
                )


def unnamed_classes(run: Run) -> Iterator[str]:
    """Find metrics of segmentation over a data set that does not name its classes."""
    for judge in run.judges:
        metric = type(judge.metric).__name__
        described = getattr(judge.dataset, "metainfo", None)
        if metric == "IoUMetric" and isinstance(described, dict) and not described.get("classes"):
            yield (
                f"{judge.dataset_key} ({type(judge.dataset).__name__}) names no classes, and "
                f"{judge.key} ({metric}) has a figure for each: set {judge.dataset_key}.metainfo."
                "classes"
            )


# Figures ----------------------------------------------------------------------------------------


def monitored_figures(run: Run) -> Iterator[str]:
    """Compare the figures that hooks and schedulers look for with those of the validation."""
    side = run.side("val")
    given = None if side is None or run.side("train") is None else figures(side)
    if given is None:
        return
    wanted = [
        ("default_hooks.checkpoint.save_best", name)
        for hook in run.hooks
        if is_a(hook, "CheckpointHook")
        for name in getattr(hook, "save_best", None) or ()
    ]
    for thing in (*run.hooks, *run.schedulers):
        if is_a(thing, "EarlyStoppingHook") or "ReduceOnPlateau" in type(thing).__name__:
            wanted.append((f"{type(thing).__name__}'s monitor", getattr(thing, "monitor", "auto")))
    for key, name in wanted:
        # Losses of the validation are named val_...
        if name not in given and name != "auto" and not name.startswith("val_"):
            near = difflib.get_close_matches(name, given, 1, 0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            yield f"{key} is {name!r}, which val_evaluator does not give: {few(given)}{hint}"


def intervals(run: Run) -> Iterator[str]:
    """Find a training that is to be validated every 0 epochs or iterations."""
    side = run.side("train")
    interval = getattr(side.loop, "val_interval", 1) if side is not None else 1
    if interval < 1:
        yield (
            f"train_cfg.val_interval is {interval}: set it to 1 or more; without val_dataloader, "
            "val_cfg and val_evaluator there is no validation"
        )


def figures(side: Side) -> list[str] | None:
    """List the names of the figures that a validation gives; None where they are not known."""
    metrics = getattr(side.evaluator, "metrics", ())
    if type(side.loop).__name__ != "ValLoop" or hasattr(side.evaluator, "dataset_prefixes"):
        return None
    found: list[str] = []
    for metric in metrics:
        names = FIGURES.get(type(metric).__name__, lambda metric: None)(metric)
        if not names or getattr(metric, "format_only", False):
            return None
        found += [f"{metric.prefix}/{name}" if metric.prefix else name for name in names]
    return found or None


def coco_figures(metric: Any) -> list[str] | None:
    """List the figures of mmdet's CocoMetric."""
    if not hasattr(metric, "metrics"):  # MMPose's, of the same name
        return None
    boxes = ["mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l"]
    recalls = ["AR@100", "AR@300", "AR@1000", "AR_s@1000", "AR_m@1000", "AR_l@1000"]
    names: list[str] = []
    for kind in metric.metrics:
        if kind == "proposal_fast":
            names += [f"AR@{number}" for number in metric.proposal_nums]
        elif kind == "proposal":
            names += metric.metric_items or recalls
        else:
            names += [f"{kind}_{item}" for item in metric.metric_items or boxes]
    if metric.classwise:
        names += [f"{name}_precision" for name in (metric.dataset_meta or {}).get("classes", ())]
    return names


def iou_figures(metric: Any) -> list[str]:
    """List the figures of mmseg's IoUMetric."""
    kinds = {
        "mIoU": ["mIoU", "mAcc"],
        "mDice": ["mDice", "mAcc"],
        "mFscore": ["mFscore", "mPrecision", "mRecall"],
    }
    asked = [metric.metrics] if isinstance(metric.metrics, str) else metric.metrics
    return ["aAcc", *(name for kind in asked for name in kinds.get(kind, ()))]


def with_thresholds(names: list[str], thresholds: tuple[float | None, ...]) -> list[str]:
    """List figures for each of some thresholds, as mmpretrain names them."""
    if len(thresholds) == 1:
        return names
    ends = ["_no-thr" if thr is None else f"_thr-{thr:.2f}" for thr in thresholds]
    return [name + end for name in names for end in ends]


def accuracy_figures(metric: Any) -> list[str]:
    """List the figures of mmpretrain's Accuracy."""
    return with_thresholds([f"top{k}" for k in metric.topk], metric.thrs)


def single_label_figures(metric: Any) -> list[str]:
    """List the figures of mmpretrain's SingleLabelMetric."""
    ends = {None: "_classwise", "micro": "_micro"}
    names = with_thresholds(list(metric.items), metric.thrs)
    return [name + ends.get(metric.average, "") for name in names]


def voc_figures(metric: Any) -> list[str] | None:
    """List the figures of mmdet's VOCMetric, where it gives the mean precision."""
    if metric.metric != "mAP":
        return None
    return ["mAP", *(f"AP{int(threshold * 100):02d}" for threshold in metric.iou_thrs)]


# By the name of the metric's class.
FIGURES = {
    "CocoMetric": coco_figures,
    "IoUMetric": iou_figures,
    "Accuracy": accuracy_figures,
    "SingleLabelMetric": single_label_figures,
    "VOCMetric": voc_figures,
}
