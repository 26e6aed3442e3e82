"""Gather what a run has, by its splits, and the keys of its config that made it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mmengine.fileio import get_local_path
from torch import nn

from ...data.coco import read_coco
from ..batches import tested


@dataclass
class Judge:
    """Hold a metric and the data set that it judges, with their keys in the config."""

    key: str
    metric: Any
    options: dict[str, Any]  # of the metric, in the config
    dataset: Any
    dataset_key: str

    @property
    def is_coco(self) -> bool:
        """Tell whether it is mmdet's CocoMetric; MMPose has another of the same name."""
        return type(self.metric).__name__ == "CocoMetric" and hasattr(self.metric, "metrics")

    @property
    def ann_file(self) -> str:
        """Return the COCO file that mmdet's CocoMetric has read; empty for others."""
        return str(self.options.get("ann_file") or "") if self.is_coco else ""

    @cached_property
    def content(self) -> dict[str, Any]:
        """Read `ann_file` as the metric has done, which keeps it to itself."""
        backend = self.options.get("backend_args")
        with get_local_path(self.ann_file, backend_args=backend) as path:
            content = read_coco(path, self.ann_file)
        return content if isinstance(content, dict) else {}


@dataclass
class Side:
    """Hold what a run has for a split: `train`, `val` or `test`."""

    split: str
    loader: Any
    evaluator: Any  # None for `train`
    loop: Any
    cfg: Any

    @property
    def key(self) -> str:
        """Return the key of the data set."""
        return f"{self.split}_dataloader.dataset"

    @property
    def parts(self) -> list[tuple[str, Any]]:
        """List key and data set of all that the data set is made of."""
        return list(leaves(self.loader.dataset, self.key))

    @cached_property
    def judges(self) -> list[Judge]:
        """List the metrics, each with the data set that it judges."""
        metrics = list(getattr(self.evaluator, "metrics", ()))
        given = list(metric_options(self.cfg.get(f"{self.split}_evaluator"), self.split))
        if len(given) != len(metrics):  # built by hand
            given = [(f"{self.split}_evaluator", {})] * len(metrics)
        judged = [(self.key, self.loader.dataset)] * len(metrics)
        if hasattr(self.evaluator, "dataset_prefixes"):  # one metric for each data set
            judged = [
                (f"{self.key}.datasets.{i}", one)
                for i, one in enumerate(getattr(self.loader.dataset, "datasets", ()))
            ]
        return [
            Judge(key, metric, options, dataset, dataset_key)
            for (key, options), metric, (dataset_key, dataset) in zip(
                given, metrics, judged, strict=False
            )
        ]


@dataclass
class Run:
    """Hold the parts of a run that have to agree."""

    model: nn.Module
    cfg: Any
    sides: list[Side]
    hooks: list[Any]
    schedulers: list[Any]
    iterations: int  # of the training; 0 without one
    resumes: bool = False
    described: Any = None  # the data set's metainfo, by the checkpoint that was loaded

    @classmethod
    def of(cls, runner: Any, splits: tuple[str, ...], described: Any = None) -> Run:
        """Gather the parts of a runner, for some of its splits."""
        loops = {split: getattr(runner, f"{split}_loop") for split in splits}
        sides = [
            Side(split, loop.dataloader, getattr(loop, "evaluator", None), loop, runner.cfg)
            for split, loop in loops.items()
            if hasattr(getattr(loop, "dataloader", None), "dataset")
        ]
        given = (runner.param_schedulers if "train" in splits else None) or []
        groups = given.values() if isinstance(given, dict) else [given]
        return cls(
            model=tested(runner.model),
            cfg=runner.cfg,
            sides=sides,
            hooks=list(runner.hooks),
            schedulers=[scheduler for group in groups for scheduler in group],
            iterations=getattr(loops.get("train"), "max_iters", 0),
            resumes="train" in splits and bool(runner.cfg.get("resume")),
            described=described,
        )

    def side(self, split: str) -> Side | None:
        """Return the side of a split, if the run has one."""
        return next((side for side in self.sides if side.split == split), None)

    @property
    def parts(self) -> list[tuple[str, Any]]:
        """List key and data set of all splits."""
        return [part for side in self.sides for part in side.parts]

    @property
    def judges(self) -> list[Judge]:
        """List the metrics of all splits."""
        return [judge for side in self.sides for judge in side.judges]


def leaves(dataset: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield key and data set of those that are concatenated, repeated, mixed and so on."""
    several = getattr(dataset, "datasets", None)
    if isinstance(several, (list, tuple)):
        inner = [(f"{key}.datasets.{i}", one) for i, one in enumerate(several)]
    else:
        inner = [(f"{key}.dataset", getattr(dataset, "dataset", None))]
    inner = [(name, one) for name, one in inner if hasattr(one, "metainfo")]
    for name, one in inner:
        yield from leaves(one, name)
    if not inner:
        yield key, dataset


def metric_options(part: Any, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield key and options of each metric of an evaluator, as the config has them."""

    def walk(part: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
        if isinstance(part, (list, tuple)):
            for i, one in enumerate(part):
                yield from walk(one, f"{key}.{i}")
        elif isinstance(part, dict) and "metrics" in part:
            yield from walk(part["metrics"], f"{key}.metrics")
        elif isinstance(part, dict):
            yield key, part

    return walk(part, f"{split}_evaluator")


def options_at(cfg: Any, key: str) -> dict[str, Any]:
    """Return the dict at a dotted key of a config; an empty one where there is none."""
    part: Any = cfg
    for name in key.split("."):
        if isinstance(part, (list, tuple)) and name.isdigit() and int(name) < len(part):
            part = part[int(name)]
        else:
            part = part.get(name) if isinstance(part, dict) or part is cfg else None
    return part if isinstance(part, dict) else {}


def is_a(thing: Any, *names: str) -> bool:
    """Tell whether a class of one of some names is among those of a thing.

    By name, since not all hosts may be installed.
    """
    return any(kind.__name__ in names for kind in type(thing).__mro__)


def classes_of(dataset: Any) -> tuple[str, ...]:
    """Return the classes of a data set, in the order of the labels; none if it has no names."""
    return named(getattr(dataset, "metainfo", None))


def named(metainfo: Any) -> tuple[str, ...]:
    """Return the classes that a metainfo names; none where things and stuff are apart."""
    if not isinstance(metainfo, dict) or "stuff_classes" in metainfo:
        return ()
    classes = metainfo.get("classes", metainfo.get("CLASSES"))
    return tuple(map(str, classes)) if isinstance(classes, (list, tuple)) else ()
