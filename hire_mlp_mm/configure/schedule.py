"""Fit a training's schedule to a data set: its length, warm-ups, intervals and batches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config, ConfigDict

from ..engine.config import nested
from ..engine.harden import last_name
from .changes import Changes, as_list, is_list

WARM_UPS = ("LinearLR", "ConstantLR", "QuadraticWarmupLR")
TOO_LONG, SHORT = 3, 10  # what is longer than a third of the training becomes a tenth of it
LOGGED = 5  # lines of the log, where the recipe's interval is too long
LEAST_WARM_UP = 2  # iterations; a shorter one would never reach its end
# Of custom hooks, in epochs.
HOOK_KEYS = ("switch_epoch", "num_last_epochs", "stop_epoch", "begin_epoch")


@dataclass
class Length:
    """Say how long a training was and is now, in epochs or, where it counts them, iterations."""

    by_epoch: bool
    before: int
    now: int
    epoch: int  # iterations in one

    @classmethod
    def of(cls, cfg: Config, images: int, epochs: int | None) -> Length:
        """Tell how long a config trains on some images, and on `epochs` of them if not None."""
        loop, loader = cfg.train_cfg, cfg.train_dataloader
        by_epoch = "max_epochs" in loop
        if by_epoch:
            images *= math.prod(part.get("times", 1) for part, _ in nested(loader.dataset))
        exact = images / loader.batch_size
        epoch = max(1, math.floor(exact) if loader.get("drop_last") else math.ceil(exact))
        before = loop.max_epochs if by_epoch else loop.max_iters
        now = before if epochs is None else epochs if by_epoch else epochs * epoch
        return cls(by_epoch, before, now, epoch)

    @property
    def iterations(self) -> int:
        """Count the iterations of the whole training."""
        return self.now * self.epoch if self.by_epoch else self.now

    def scale(self, moment: int, least: int = 0) -> int:
        """Move a moment of the old training to the same part of the new one.

        The end stays the end, and the step after it, too.
        """
        if moment in (self.before, self.before + 1):
            return self.now + moment - self.before
        return max(least, math.ceil(moment * self.now / self.before - 0.5))

    def shorten(self, interval: int, whole: int, times: int = SHORT) -> int:
        """Make an interval that is too long for the whole so short that it fits `times` in."""
        return interval if interval <= max(1, whole / TOO_LONG) else max(1, whole // times)

    def fit(self, interval: int) -> int:
        """Make an interval of the training's unit shorter, in proportion, where it is too long.

        A recipe that saves every `max_iters` iterations saves at the end.
        """
        if interval == self.before or interval > self.now / TOO_LONG:
            return max(1, min(interval, self.scale(interval)))
        return interval

    def text(self) -> str:
        """Say how long it is now."""
        in_all = f"{self.iterations} iterations, one epoch of the images is {self.epoch}"
        return f"{self.now} epochs, {in_all}" if self.by_epoch else in_all


def fit_schedule(change: Changes, images: int, epochs: int | None) -> Length:
    """Fit the schedule of a config to the number of images; return how long it trains now.

    Args:
        change: of the config.
        images: of the training split.
        epochs: how often the training goes through them; the schedule is scaled in proportion.
            None for the recipe's length.
    """
    cfg = change.cfg
    loader = cfg.train_dataloader
    if loader.get("drop_last") and loader.batch_size > images > 0:
        size = 2 ** int(math.log2(images))
        change.set(loader, "train_dataloader.", "batch_size", size)
    length = Length.of(cfg, images, epochs)
    key = "max_epochs" if length.by_epoch else "max_iters"
    change.set(cfg.train_cfg, "train_cfg.", key, length.now)
    fit_schedulers(change, length)
    fit_intervals(change, length)
    if length.by_epoch and length.now != length.before:
        for i, hook in enumerate(cfg.get("custom_hooks") or ()):
            for key in [key for key in HOOK_KEYS if hook.get(key)]:
                change.set(hook, f"custom_hooks.{i}.", key, length.scale(hook[key], least=1))
    return length


# Schedulers --------------------------------------------------------------------------------------


@dataclass
class WarmUp:
    """Say where a warm-up ended and ends now; at 0 where there is no time for one."""

    by_epoch: bool
    before: int
    iterations: int


def fit_schedulers(change: Changes, length: Length) -> None:
    """Shorten warm-ups that are too long, and scale all else to the length of the training."""
    cfg = change.cfg
    schedulers: list[Any] = [s for s in as_list(cfg.get("param_scheduler")) if isinstance(s, dict)]
    several = is_list(cfg.get("param_scheduler"))
    named = [
        (one, f"param_scheduler.{i}." if several else "param_scheduler.")
        for i, one in enumerate(schedulers)
    ]
    warm_ups = [fit_warm_up(change, one, path, length) for one, path in named if is_warm_up(one)]
    gone = []
    for one, path in named:
        has_time = all(warm_up.iterations for warm_up in warm_ups)
        if not is_warm_up(one):
            fit_scheduler(change, one, path, length, warm_ups)
            has_time = one.get("begin", 0) < one.get("end", math.inf)
        if not has_time:
            gone.append(one)
            change.changes.append(f"{path[:-1]}: {last_name(one.type)} removed, it has no time")
    if gone:
        cfg.param_scheduler = [one for one in schedulers if one not in gone]


def is_warm_up(one: ConfigDict) -> bool:
    """Tell whether a scheduler raises the learning rate at the start."""
    return last_name(one.type) in WARM_UPS and not one.get("begin") and bool(one.get("end"))


def fit_warm_up(change: Changes, one: ConfigDict, path: str, length: Length) -> WarmUp:
    """Shorten a warm-up that is too long; one in epochs follows the length of the training."""
    by_epoch, before = one.get("by_epoch", True), one.end
    if length.iterations < TOO_LONG * LEAST_WARM_UP:
        return WarmUp(by_epoch, before, 0)
    exact = before * length.epoch if by_epoch else before
    if by_epoch:
        exact = exact * length.now / length.before if length.by_epoch else exact
    iterations = max(LEAST_WARM_UP, length.shorten(round(exact), length.iterations))
    if not by_epoch:
        change.set(one, path, "end", iterations)
    elif iterations != before * length.epoch:  # a part of an epoch is counted in iterations
        one.pop("convert_to_iter_based", None)
        change.set(one, path, "by_epoch", False)
        change.set(one, path, "end", iterations)
    return WarmUp(by_epoch, before, iterations)


def fit_scheduler(
    change: Changes, one: ConfigDict, path: str, length: Length, warm_ups: list[WarmUp]
) -> None:
    """Scale a scheduler to the length of the training; it begins where its warm-up ends."""
    by_epoch = one.get("by_epoch", True)
    begin, end = one.get("begin", 0), one.get("end")
    new_begin = begin
    followed = [w for w in warm_ups if w.by_epoch == by_epoch and 0 < begin <= w.before]
    if followed:
        iterations = followed[0].iterations
        new_begin = min(begin, iterations // length.epoch if by_epoch else iterations)
    elif by_epoch == length.by_epoch:
        new_begin = length.scale(begin)
    if new_begin != begin:
        change.set(one, path, "begin", new_begin)
    if "last_step" in one:
        change.set(one, path, "last_step", max(-1, one.last_step + new_begin - begin))
    if by_epoch != length.by_epoch:  # in a unit that the training's length does not say
        return
    if end:
        change.set(one, path, "end", length.scale(end))
    if whole := one.get("T_max"):
        new = one.end - new_begin if end and whole == end - begin else length.scale(whole)
        change.set(one, path, "T_max", max(1, new))
    if one.get("step_size"):
        change.set(one, path, "step_size", length.scale(one.step_size, least=1))
    if one.get("milestones"):
        moments = [length.scale(moment, least=1) for moment in one.milestones]
        if moments != list(one.milestones):
            change.set(one, path, "milestones", moments)


# Intervals ---------------------------------------------------------------------------------------


def fit_intervals(change: Changes, length: Length) -> None:
    """Shorten the intervals of validation, checkpoints and log that are too long."""
    loop = change.cfg.train_cfg
    if "val_interval" in loop:
        change.set(loop, "train_cfg.", "val_interval", length.fit(loop.val_interval))
    if loop.get("dynamic_intervals"):
        fit_dynamic_intervals(change, loop, length)
    hooks: Any = change.cfg.get("default_hooks") or {}
    saving: Any = hooks.get("checkpoint") or {}
    logging: Any = hooks.get("logger") or {}
    by_epoch = saving.get("by_epoch", True)
    if "interval" in saving and (length.by_epoch or not by_epoch):
        in_its_unit = by_epoch == length.by_epoch
        interval = (
            length.fit(saving.interval)
            if in_its_unit
            else length.shorten(saving.interval, length.iterations)
        )
        change.set(saving, "default_hooks.checkpoint.", "interval", interval)
    if "interval" in logging:
        interval = length.shorten(logging.interval, length.iterations, LOGGED)
        change.set(logging, "default_hooks.logger.", "interval", interval)


def fit_dynamic_intervals(change: Changes, loop: ConfigDict, length: Length) -> None:
    """Move the moments from which on there is another interval of validation."""
    usual = loop.get("val_interval", 1)
    moved = [
        (length.scale(moment), length.fit(interval)) for moment, interval in loop.dynamic_intervals
    ]
    moved = [(moment, interval) for moment, interval in moved if interval < usual]
    if moved != [tuple(pair) for pair in loop.dynamic_intervals]:
        change.set(loop, "train_cfg.", "dynamic_intervals", moved or None)
