"""Compare, once and before the first iteration, what must agree in a run.

Data sets, heads, preprocessor, evaluators, checkpoint and hooks are configured apart from each
other. Where two of them say different things, the hosts stop hours later with a traceback that
names neither, or go on to a wrong figure. Each function of the tables below compares one such pair
and yields a line for each difference: it names both sides and the keys to set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mmengine.hooks import Hook

from ...errors import DataError
from ...registry import HOOKS
from . import classes, evaluators, models
from .sides import Run

Agreement = Callable[[Run], Iterator[str]]

# What fails in the end, or makes a wrong figure.
REFUSED: tuple[Agreement, ...] = (
    classes.of_splits,
    classes.of_checkpoint,
    classes.heads_with_too_few,
    classes.heads_with_too_many,
    classes.of_one_hot_labels,
    classes.labels_beyond_the_head,
    evaluators.one_description,
    evaluators.categories,
    evaluators.images,
    evaluators.boxes_of_samples,
    evaluators.masks,
    evaluators.first_of_few,
    evaluators.ignored_labels,
    evaluators.monitored_figures,
    evaluators.intervals,
    evaluators.unnamed_classes,
    models.enough_images,
    models.iterations,
    models.packed_before_mixed,
    models.misspelt_options,
    models.all_images_once,
    models.something_to_learn,
    models.class_weights,
    models.norms_of_one_value,
    models.windows,
)
# What may be meant.
WARNED: tuple[Agreement, ...] = (
    classes.heads_with_more,
    classes.zero_labels_of_splits,
    classes.labels_from_one,
    evaluators.ignored_classes,
    models.other_options,
)
# What is meant, as a rule.
NOTED: tuple[Agreement, ...] = (classes.of_fine_tuned_checkpoint,)


@HOOKS.register_module()
class AgreementHook(Hook):
    """Stop a run in which parts that belong together do not agree."""

    priority = "VERY_HIGH"

    def __init__(self) -> None:
        self.compared = False  # for the training that is under way
        self.described: Any = None  # the data set, by the checkpoint that was loaded

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        meta = checkpoint.get("meta")
        self.described = meta.get("dataset_meta") if isinstance(meta, dict) else None

    def before_train(self, runner: Any) -> None:
        self.compare(runner, "train", "val")
        self.compared = True
        self.described = None  # a test that follows is of the trained model

    def after_train(self, runner: Any) -> None:
        self.compared = False

    def before_val(self, runner: Any) -> None:
        if not self.compared:
            self.compare(runner, "val")

    def before_test(self, runner: Any) -> None:
        self.compare(runner, "test")

    def compare(self, runner: Any, *splits: str) -> None:
        """Raise DataError with the first difference of some splits; log all others."""
        run = Run.of(runner, splits, self.described)
        for line in lines(NOTED, run):
            runner.logger.info(line)
        refused = differences(run)
        for line in (*refused[1:], *lines(WARNED, run)):
            runner.logger.warning(line)
        if refused:
            # Not one process for all: the others would end before it has spoken.
            raise DataError(refused[0])


def differences(run: Run) -> list[str]:
    """List what keeps a run from its end, or makes a wrong figure of it, a line each."""
    return list(lines(REFUSED, run))


def lines(agreements: Iterable[Agreement], run: Run) -> Iterator[str]:
    """Yield the differences that some agreements find."""
    for agreement in agreements:
        yield from agreement(run)
