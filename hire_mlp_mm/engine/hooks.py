"""Keep a training's place; with the import of this file, all hooks of the engine are registered."""

from __future__ import annotations

import time
from typing import Any

from mmengine.dist import broadcast, get_rank
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop

from ..errors import UserError
from ..registry import HOOKS
from . import (  # noqa: F401  which register theirs
    agreement,
    batches,
    checkpoints,
    finite,
    forms,
    pictures,
)
from .loops import validation_is_due
from .randomness import STEP, VALIDATION, PlacedBatchSampler, seed_everything


@HOOKS.register_module()
class PlaceHook(Hook):
    """Seed every step and validation, and write into checkpoints where in the data they stand."""

    priority = "HIGHEST"  # before anything draws or saves

    def __init__(self) -> None:
        self.batches: PlacedBatchSampler | None = None  # of a loader that `harden` prepared
        self.done = 0  # batches of this epoch
        self.validated = False

    def before_train(self, runner: Any) -> None:
        sampler = runner.train_dataloader.batch_sampler
        self.batches = sampler if isinstance(sampler, PlacedBatchSampler) else None

    def before_train_epoch(self, runner: Any) -> None:
        if self.batches is not None and isinstance(runner.train_loop, EpochBasedTrainLoop):
            self.batches.epoch = runner.epoch
            self.done = self.batches.skip

    def before_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        seed_everything(runner.seed, get_rank(), STEP, runner.iter)

    def after_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        self.done += 1
        self.validated = False

    def after_train_epoch(self, runner: Any) -> None:
        self.done = 0

    def before_val_epoch(self, runner: Any) -> None:
        seed_everything(runner.seed, get_rank(), VALIDATION, runner.iter)

    def after_val_epoch(self, runner: Any, metrics: dict[str, Any] | None = None) -> None:
        self.validated = True

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        meta = checkpoint["meta"]
        by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
        meta["place"] = (meta["epoch"], self.done) if by_epoch else (0, meta["iter"])
        meta["validated"] = self.validated
        meta["saved"] = time.time()
        if self.batches is not None:
            meta["order"] = self.batches.order


@HOOKS.register_module()
class OneModelHook(Hook):
    """Have all processes validate the model that the first of them saves.

    Without SyncBN each has running statistics of its own, and a checkpoint holds the first one's.
    """

    priority = "LOWEST"  # after an average has taken the model's place

    def before_val_epoch(self, runner: Any) -> None:
        for buffer in runner.model.buffers():
            broadcast(buffer)


@HOOKS.register_module()
class CatchUpHook(Hook):
    """Validate a model that was saved, but not validated before the crash.

    The training would never validate it, though it may be the best one.
    """

    priority = "LOWEST"  # when all is ready

    def before_train(self, runner: Any) -> None:
        loop = runner.train_loop
        start = getattr(loop, "start", None)
        if start is None:
            return
        if runner.iter != start.meta.get("iter", runner.iter):
            raise UserError(
                f"this process has not loaded {start.path}, from which the first one goes on: "
                f"the work dir {runner.work_dir} has to be one for all machines of a run"
            )
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        if loop.epoch >= loop.max_epochs if by_epoch else loop.iter >= loop.max_iters:
            runner.logger.warning(
                f"nothing is left to train: {start.path} is the end of it; for more, raise "
                f"train_cfg.max_epochs or max_iters"
            )
        if "place" not in start.meta or start.meta["validated"]:
            return
        within_epoch = by_epoch and start.meta["place"][1]
        if not within_epoch and validation_is_due(loop):
            runner.logger.info("validating what was saved and not validated any more")
            runner.val_loop.run()
