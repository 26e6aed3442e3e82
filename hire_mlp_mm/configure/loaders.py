"""Put the splits of a data set into the loaders, pipelines and evaluators of a config."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config, ConfigDict

from ..data.coco.faults import of_order
from ..data.layout import SPLITS, Layout
from ..data.palette import palette_for
from ..doctor import HOSTS
from ..engine.builds import parts_of
from ..engine.config import DOWNLOADING, innermost, model_of, nested
from ..engine.harden import last_name
from ..errors import UserError
from .changes import Changes, as_list, brief, is_list
from .classes import fit_topk
from .sources import Source

DATASETS = dict(
    detection="CocoDataset", segmentation="BaseSegDataset", classification="CustomDataset"
)
METRICS = dict(detection="CocoMetric", segmentation="IoUMetric", classification="Accuracy")
BEST = dict(detection="coco/bbox_mAP", segmentation="mIoU", classification="auto")
# What steps of a segmentor's pipeline put in the place of pixels that are not learnt.
IGNORING = dict(
    RandomCrop="ignore_index",
    GenerateEdge="ignore_index",
    RandomRotate="seg_pad_val",
    RandomMosaic="seg_pad_val",
)
# Of the old data, at the top level of a config, where nothing reads them any more.
LEFTOVERS = (
    "data_root",
    "dataset_type",
    "metainfo",
    "classes",
    "num_classes",
    "max_epochs",
    "max_iters",
    "epochs",
)


def set_data(change: Changes, layout: Layout, sources: dict[str, Source]) -> None:
    """Put a data set into the loaders and evaluators of a config.

    Raises:
        UserError: the config has no loader, or learns from what the data do not have.
    """
    cfg = change.cfg
    complete_loops(cfg)
    refuse_pipelines(cfg, layout)
    for split in SPLITS:
        named = split if split in sources else "val"  # which stands for a test split
        set_loader(change, layout, sources[named], split, named)
        if split != "train":
            set_evaluator(change, layout, sources[named], split)
    if layout.task == "segmentation":
        for split in SPLITS:
            key = f"{split}_dataloader"
            fit_masks(change, cfg[key], key, layout)
        fit_others(change, layout)
    fit_filter(change, sources["train"])
    fit_best(change, layout)
    if gone := [key for key in LEFTOVERS if cfg.pop(key, None) is not None]:
        change.changes.append(f"{', '.join(gone)}: removed, for nothing reads them")


def complete_loops(cfg: Config) -> None:
    """Give a config what it validates and tests with: `test_*` becomes as `val_*`.

    Raises:
        UserError: it has no loader to train with, or none to validate with.
    """
    train, val = cfg.get("train_dataloader"), cfg.get("val_dataloader")
    val = val or cfg.get("test_dataloader")
    for name, loader in (("train", train), ("val", val)):
        wanted = isinstance(loader, dict) and isinstance(loader.get("dataset"), dict)
        if not wanted or "batch_size" not in loader:
            raise UserError(f"the config has no {name}_dataloader with a data set and batch_size")
    cfg.val_dataloader, cfg.test_dataloader = val, copy.deepcopy(val)
    cfg.val_evaluator = cfg.get("val_evaluator") or cfg.get("test_evaluator")
    cfg.test_evaluator = copy.deepcopy(cfg.val_evaluator)
    for key in ("val_cfg", "test_cfg"):
        cfg[key] = cfg.get(key) if cfg.get(key) is not None else ConfigDict()


def set_loader(change: Changes, layout: Layout, source: Source, split: str, named: str) -> None:
    """Put a split into the loader of the same or another split."""
    cfg, loader = change.cfg, change.cfg[f"{split}_dataloader"]
    before = kinds(loader.dataset)
    loader.dataset = alone(loader.dataset)
    dataset = innermost(loader.dataset)
    fresh = new_dataset(cfg, layout, source, dataset, split)
    added = len(fresh.pipeline) - len(dataset.pipeline)
    dataset.clear()
    dataset.update(fresh)
    place: Any = source.keys.get("ann_file") or source.keys["data_prefix"]
    where = ", ".join(place.values()) if isinstance(place, dict) else place
    kind = replaced(before, kinds(loader.dataset))
    change.changes.append(f"{split}_dataloader.dataset: {kind}{dataset.data_root}")
    change.changes.append(f"    {named}: {where}")
    if added:
        change.changes.append("    pipeline: loads the images, and makes them of one size")


def replaced(before: str, now: str) -> str:
    """Say which class took the place of another, before a comma; nothing of the same one."""
    return f"{before} -> {now}, " if before != now else ""


# Data sets ---------------------------------------------------------------------------------------


def alone(dataset: ConfigDict) -> ConfigDict:
    """Return a data set with the first one in the place of each that joins several."""
    while is_list(dataset.get("datasets")):
        dataset = dataset["datasets"][0]
    if isinstance(dataset.get("dataset"), dict):
        dataset.dataset = alone(dataset.dataset)
    return dataset


def kinds(dataset: ConfigDict) -> str:
    """Name the class of a data set, and those of the data sets within it."""
    return " of ".join(last_name(part.get("type")) for part, _ in nested(dataset))


def new_dataset(
    cfg: Config, layout: Layout, source: Source, old: ConfigDict, split: str
) -> ConfigDict:
    """Make the config of a data set; the pipeline and the filter are those of the old one."""
    dataset = ConfigDict(type=scoped(cfg, layout, DATASETS), metainfo=metainfo(layout))
    dataset.update(data_root=layout.root.absolute().as_posix(), **source.keys)
    if layout.task == "detection" and split == "train":
        filters = old.get("filter_cfg") or {}
        kept = {key: filters[key] for key in ("filter_empty_gt", "min_size") if key in filters}
        dataset.filter_cfg = ConfigDict(kept or dict(filter_empty_gt=True))
    if layout.task == "detection" and split != "train":
        dataset.test_mode = True
    if layout.task == "segmentation":
        dataset.img_suffix = layout.image_suffix
        dataset.reduce_zero_label = layout.reduce_zero_label
        dataset.ignore_index = layout.ignore_index
    dataset.pipeline = [*loading(cfg, old), *old.pipeline]
    return dataset


def loading(cfg: Config, old: ConfigDict) -> list[ConfigDict]:
    """Make the steps in the place of a data set that gave images of one size itself."""
    size = DOWNLOADING.get(last_name(old.get("type")))
    if size is None:
        return []
    means: Any = (model_of(cfg).get("data_preprocessor") or {}).get("mean")
    kind = "grayscale" if is_list(means) and len(means) == 1 else "color"
    load = ConfigDict(type="LoadImageFromFile", color_type=kind)
    return [load, ConfigDict(type="Resize", scale=size)]


def scoped(cfg: Config, layout: Layout, names: dict[str, str]) -> str:
    """Name a class of the host of a task, as a config of this or of another host finds it."""
    name = names[layout.task]
    host = next(host for host, task in HOSTS.items() if task == layout.task)
    return name if cfg.default_scope == host else f"{host}.{name}"


def metainfo(layout: Layout) -> ConfigDict:
    """Make the names, and the colours that pictures have them in."""
    info = ConfigDict(classes=tuple(layout.classes))
    if layout.task != "classification":
        info.palette = palette_for(layout.palette, len(layout.classes))
    return info


# Pipelines ---------------------------------------------------------------------------------------


def steps(part: Any, path: str) -> Iterator[tuple[ConfigDict, str]]:
    """Yield each step of the pipelines within a part of a config, with its path and a dot."""
    return ((step, f"{at}.") for at, step in parts_of(part, path) if "type" in step)


def learns_masks(cfg: Config) -> bool:
    """Tell whether a detector's training reads masks."""
    return any(step.get("with_mask") for step, _ in steps(cfg.train_dataloader.dataset, ""))


def refuse_pipelines(cfg: Config, layout: Layout) -> None:
    """Raise UserError where a training reads what the data set does not have."""
    found = [step for step, _ in steps(cfg.train_dataloader.dataset, "")]
    if any(last_name(step.type) in ("LoadProposals", "LoadPanopticAnnotations") for step in found):
        raise UserError("the config learns from proposals or panoptic maps; take one without")
    if layout.task == "classification":
        return
    if not any(last_name(step.type) == "LoadAnnotations" for step in found):
        raise UserError("the config's training pipeline has no LoadAnnotations, for these labels")
    if layout.task == "segmentation":
        return
    if any(step.get("with_seg") for step in found):
        raise UserError("the config learns maps of classes beside the boxes; take one without")
    if learns_masks(cfg) and not layout.has_masks:
        raise UserError(
            f"the config learns masks, and {layout.root} has objects without ({layout.kind}); take "
            "a config for boxes, such as retinanet_hire_s_1x_coco or "
            "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"
        )


def fit_masks(change: Changes, part: Any, path: str, layout: Layout) -> None:
    """Have the steps of a segmentor's pipelines read and ignore labels as the masks have them."""
    for step, at in steps(part, path):
        kind = last_name(step.type)
        if kind == "LoadAnnotations" and step.get("reduce_zero_label") is not None:
            change.set(step, at, "reduce_zero_label", layout.reduce_zero_label)
        elif kind in IGNORING and layout.ignore_index != step.get(IGNORING[kind], 255):
            change.set(step, at, IGNORING[kind], layout.ignore_index)
        elif kind == "Pad" and layout.ignore_index != 255:
            value = step.get("pad_val", 0)
            value = dict(value) if isinstance(value, dict) else dict(img=value)
            change.set(step, at, "pad_val", ConfigDict(value, seg=layout.ignore_index))


def fit_others(change: Changes, layout: Layout) -> None:
    """Do as `fit_masks` with the pipelines outside of the loaders, for tests and inferencers."""
    others = Changes(change.cfg)
    keys = [key for key in change.cfg if key.endswith("pipeline")]
    for key in keys:
        fit_masks(others, change.cfg[key], key, layout)
    if others.changes:
        change.changes.append(f"{', '.join(keys)}: read masks as the loaders' pipelines do")


def fit_filter(change: Changes, source: Source) -> None:
    """Let no image be left out for being small."""
    *_, (dataset, path) = nested(change.cfg.train_dataloader.dataset, "train_dataloader.dataset")
    least = (dataset.get("filter_cfg") or {}).get("min_size", 0)
    if least and any(min(size) < least for size in source.coco_sizes()):
        change.set(dataset.filter_cfg, f"{path}.filter_cfg.", "min_size", 0)


# Evaluators --------------------------------------------------------------------------------------


def set_evaluator(change: Changes, layout: Layout, source: Source, split: str) -> None:
    """Evaluate a split by the metric of its task, with the options that the config has for it."""
    cfg, key = change.cfg, f"{split}_evaluator"
    before: list[Any] = [metric for metric in as_list(cfg[key]) if isinstance(metric, dict)]
    same = [metric for metric in before if last_name(metric.type) == METRICS[layout.task]]
    metric: Any = copy.deepcopy(same[0]) if same else ConfigDict()
    for name in ("format_only", "outfile_prefix", "output_dir", "backend_args"):
        metric.pop(name, None)
    metric.type = same[0].type if same else scoped(cfg, layout, METRICS)
    if layout.task == "detection":
        every = ["bbox", "segm"] if learns_masks(cfg) else ["bbox"]
        kept = [name for name in as_list(metric.get("metric", every)) if name in every] or every
        root = layout.root.absolute()
        metric.update(ann_file=(root / source.keys["ann_file"]).as_posix(), metric=kept)
        metric.classwise = not any(of_order(source.coco["categories"]))
    elif layout.task == "classification":
        metric.topk = fit_topk(metric.get("topk", (1, 5)), len(layout.classes))
    elif layout.ignore_index != metric.get("ignore_index", 255):
        metric.ignore_index = layout.ignore_index
    cfg[key] = metric
    kind = replaced(", ".join(last_name(one.type) for one in before), last_name(metric.type))
    options = ("metric", "ann_file", "classwise", "topk", "ignore_index")
    said = [name for name in options if name in metric]
    values = ", ".join(f"{name} {brief(metric[name])}" for name in said)
    if [metric] != before:
        change.changes.append(f"{key}: {kind}{values}".removesuffix(", "))


def fit_best(change: Changes, layout: Layout) -> None:
    """Keep the best checkpoint, by a figure that the evaluator gives."""
    hook = (change.cfg.get("default_hooks") or {}).get("checkpoint") or {}
    best = hook.get("save_best")
    given = {
        "detection": ("coco/bbox_mAP", *(["coco/segm_mAP"] if learns_masks(change.cfg) else [])),
        "segmentation": ("mIoU", "mDice", "mFscore", "aAcc", "mAcc"),
        "classification": ("accuracy/top1",),
    }[layout.task]
    fits = best == "auto" or (isinstance(best, str) and best.startswith(given))
    if hook and not (fits or isinstance(best, (list, tuple))):
        change.set(hook, "default_hooks.checkpoint.", "save_best", BEST[layout.task])
