"""Compare the classes of data sets with each other, with a checkpoint's and with the heads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ...data.report import Report, few
from ..builds import parts_of
from .sides import Judge, Run, classes_of, is_a, named

# Attributes of models that find what a text describes: their classes are words, not outputs.
TEXT = ("language_model", "text_backbone", "text_encoder", "text_model", "tokenizer")
# Parts of detectors that give each object its label.
LABELLING = {"bbox_head", "panoptic_head", "query_head"}
SAME_METAINFO = "set metainfo.classes to the same names, in the same order, in both"


def fixed_classes(model: nn.Module) -> bool:
    """Tell whether a model has an output for each class."""
    by_text = any(getattr(model, name, None) is not None for name in TEXT)
    return not by_text and not is_a(model, "BaseRetriever")


# Data sets and checkpoints ----------------------------------------------------------------------


def conflict(first: tuple[str, ...], second: tuple[str, ...]) -> str:
    """Say which label has two meanings; nothing where one list is the beginning of the other."""
    pairs = enumerate(zip(first, second, strict=False))
    differing = next(
        (f"label {i} is {a!r} in the one and {b!r} in the other" for i, (a, b) in pairs if a != b),
        "",
    )
    lacking = {
        "first": [name for name in second if name not in first],
        "second": [name for name in first if name not in second],
    }
    parts = [f"the {which} lacks {few(names)}" for which, names in lacking.items() if names]
    return ", ".join([differing, *parts]) if differing else ""


def of_splits(run: Run) -> Iterator[str]:
    """Compare the classes of all data sets; the last ones may be missing in some."""
    parts = [(key, part, classes_of(part)) for key, part in run.parts if classes_of(part)]
    if not parts or not fixed_classes(run.model):
        return
    key, longest, most = max(parts, key=lambda part: len(part[2]))
    for other_key, other, classes in parts:
        if line := conflict(most, classes):
            by_folder = is_a(longest, "CustomDataset") and is_a(other, "CustomDataset")
            cure = "every class needs a folder in both" if by_folder else SAME_METAINFO
            yield f"the classes of {key} and {other_key} differ: {line}; {cure}"


def of_checkpoint(run: Run) -> Iterator[str]:
    """Compare the classes of a checkpoint with those of the data, where it is not fine-tuned."""
    if run.side("train") is None or run.resumes:
        yield from checkpoint_lines(run)


def of_fine_tuned_checkpoint(run: Run) -> Iterator[str]:
    """Compare the classes of a checkpoint with those of the data that it is fine-tuned on."""
    if run.side("train") is not None and not run.resumes:
        for line in checkpoint_lines(run):
            yield f"{line}; the training teaches it the new ones"


def checkpoint_lines(run: Run) -> Iterator[str]:
    """Yield where a checkpoint says other classes than a data set has."""
    given = run.described if isinstance(run.described, (list, tuple)) else [run.described]
    lists = [named(one) for one in given if named(one)]
    if not lists or not fixed_classes(run.model):
        return
    trained = max(lists, key=len)
    for key, dataset in run.parts:
        if line := conflict(trained, classes_of(dataset)):
            path = run.cfg.get("load_from") or "the checkpoint"
            yield (
                f"{path} was trained on other classes than {key} has: {line} "
                f"(its dataset_meta: {few(trained)})"
            )
            return


def zero_labels_of_splits(run: Run) -> Iterator[str]:
    """Compare what data sets for segmentation make of label 0."""
    parts = [(key, part) for key, part in run.parts if hasattr(part, "reduce_zero_label")]
    for key, part in parts[1:]:
        first_key, first = parts[0]
        if bool(part.reduce_zero_label) != bool(first.reduce_zero_label):
            yield (
                f"{key} has reduce_zero_label={bool(part.reduce_zero_label)} and {first_key} "
                f"{bool(first.reduce_zero_label)}: the same value in a mask is another class there"
            )
            return


# Heads ------------------------------------------------------------------------------------------


def heads(model: nn.Module) -> Iterator[tuple[str, nn.Module, int]]:
    """Yield path, part and number of classes of all that has an output for each class."""
    for path, part in model.named_modules():
        number = getattr(part, "num_classes", None)
        other = not path or path.split(".")[-1] in ("data_preprocessor", "semantic_head")
        if other or has_other_classes(path, part) or getattr(part, "class_agnostic", False):
            continue
        if isinstance(number, int) and number > 0:  # a backbone without a classifier has -1
            yield path, part, number


def has_other_classes(path: str, part: nn.Module) -> bool:
    """Tell whether a part of a model has classes of its own, whatever those of the data are.

    A region proposal network has one, the object; STDCHead two, of boundaries; and a classifier may
    serve as backbone.
    """
    is_rpn = "rpn" in f"{path} {type(part).__name__}".lower()
    return is_rpn or is_a(part, "STDCHead") or "backbone" in path.split(".")[:-1]


def mismatch(run: Run, wrong: list[tuple[str, nn.Module, int]], key: str, dataset: Any) -> str:
    """Say that heads have another number of classes than a data set, and name all keys to set."""
    path, head, _ = wrong[0]
    classes = classes_of(dataset)
    names, numbers = ("num_classes", "num_things_classes"), {number for _, _, number in wrong}
    found = [
        f"{at}.{name}"
        for at, part in parts_of(run.cfg.get("model") or {}, "model")
        for name in names
        if part.get(name) in numbers and "rpn" not in at and "data_preprocessor" not in at
    ]
    has = f"and {len(wrong) - 1} more parts have" if len(wrong) > 1 else "has"
    counts = " or ".join(map(str, sorted(numbers)))
    return (
        f"model.{path} ({type(head).__name__}) {has} num_classes={counts}, and {key} "
        f"({type(dataset).__name__}) {len(classes)} classes ({few(classes)}): set "
        f"{', '.join(found) or f'model.{path}.num_classes'} to {len(classes)}"
    )


def heads_with_too_few(run: Run) -> Iterator[str]:
    """Compare the heads with the data set that has most classes.

    mmdet takes a label beyond a head's classes for the background, mmseg leaves it out of the
    figures.
    """
    if not run.parts or not fixed_classes(run.model):
        return
    key, dataset = max(run.parts, key=lambda part: len(classes_of(part[1])))
    most = len(classes_of(dataset))
    if wrong := [head for head in heads(run.model) if head[2] < most]:
        yield f"{mismatch(run, wrong, key, dataset)}, or {key}.metainfo.classes to those"


def heads_with_too_many(run: Run) -> Iterator[str]:
    """Find heads with outputs for which a metric has no place.

    CocoMetric looks a label up in the list of categories: an IndexError, as soon as an output
    beyond the classes scores. A mean over the outputs of a classifier counts those that no image
    can have as 0.
    """
    for judge in run.judges if fixed_classes(run.model) else []:
        number = len(classes_of(judge.dataset))
        wrong = [head for head in heads(run.model) if number and head[2] > number]
        if asks_for_all(judge, [path for path, _, _ in wrong]):
            line = mismatch(run, wrong, judge.dataset_key, judge.dataset)
            yield f"{line}; {judge.key} ({type(judge.metric).__name__}) has no other classes"
            return


def asks_for_all(judge: Judge, paths: list[str]) -> bool:
    """Tell whether a metric needs a class for each output of the heads at some paths."""
    if type(judge.metric).__name__ in ("CocoMetric", "LVISMetric"):
        parts = [set(path.split(".")) for path in paths]
        return any(
            part & LABELLING or ("mask_head" in part and "roi_head" not in part) for part in parts
        )
    over_outputs = type(judge.metric).__name__ == "SingleLabelMetric"
    return bool(paths) and over_outputs and judge.metric.average == "macro"


def heads_with_more(run: Run) -> Iterator[str]:
    """Find heads with outputs for which there are no classes, but no harm is done."""
    side = run.sides[0] if run.sides else None
    if side is None or not fixed_classes(run.model) or any(heads_with_too_many(run)):
        return
    key, dataset = max(side.parts, key=lambda part: len(classes_of(part[1])))
    most = len(classes_of(dataset))
    if wrong := [head for head in heads(run.model) if most and head[2] > most]:
        yield f"{mismatch(run, wrong, key, dataset)}, unless that is meant"


def unnamed_labels(run: Run) -> Iterator[tuple[str, list[int], int]]:
    """Yield (list, its labels, outputs of the head) where the classes of a list have no names."""
    number: Any = getattr(getattr(run.model, "head", None), "num_classes", None)
    for _, dataset in run.parts if isinstance(number, int) else ():
        unnamed = is_a(dataset, "CustomDataset") and not classes_of(dataset)
        report: Report | None = getattr(dataset, "report", None) if unnamed else None
        if report is not None and report.per_class:
            yield report.source, [int(label) for label in report.per_class], number


def labels_beyond_the_head(run: Run) -> Iterator[str]:
    """Find labels of a list for which a classifier has no output."""
    for source, labels, number in unnamed_labels(run):
        if labels[-1] >= number:
            cure = "write labels from 0" if labels[0] == 1 else "set model.head.num_classes"
            yield (
                f"{source} has the labels {labels[0]} to {labels[-1]}, and model.head "
                f"num_classes={number}; expected 0 to {number - 1}: {cure}"
            )


def labels_from_one(run: Run) -> Iterator[str]:
    """Find lists that may count their labels from 1."""
    for source, labels, number in unnamed_labels(run):
        if labels[0] == 1 and labels[-1] < number:
            yield (
                f"{source} has the labels 1 to {labels[-1]}, and none is 0, the first of "
                f"model.head's {number}: write labels from 0, unless that is meant"
            )


def of_one_hot_labels(run: Run) -> Iterator[str]:
    """Compare a classifier's head with what makes vectors of its labels, for mixed images."""
    head = getattr(run.model, "head", None)
    number = getattr(head, "num_classes", None)
    if run.side("train") is None or not isinstance(number, int):
        return
    preprocessor = getattr(run.model, "data_preprocessor", None)
    place = "model." if "data_preprocessor" in (run.cfg.get("model") or {}) else ""
    makers = {"model.head.loss": getattr(head, "loss_module", None)}
    if getattr(preprocessor, "to_onehot", False):
        makers[f"{place}data_preprocessor"] = preprocessor
    for key, maker in makers.items():
        length = getattr(maker, "num_classes", None)
        if isinstance(length, int) and length != number:
            yield (
                f"{key} ({type(maker).__name__}) has num_classes={length}, and model.head "
                f"{number}: the labels of mixed images do not fit; set {key}.num_classes={number}"
            )
