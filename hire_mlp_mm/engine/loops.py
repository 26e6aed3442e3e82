"""Offer mmengine's training loops with data that begin where their checkpoint was."""

from __future__ import annotations

import bisect
from typing import Any

from mmengine.dist import get_rank
from mmengine.runner import EpochBasedTrainLoop as HostEpochs
from mmengine.runner import IterBasedTrainLoop as HostIterations
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from ..host_faults import tell_batch_size
from ..registry import LOOPS
from .randomness import PlacedBatchSampler, seed_everything
from .resume import Start, choose_start


def build_data(
    runner: Any, dataloader: DataLoader | dict[str, Any], by_epoch: bool
) -> tuple[DataLoader, Start | None]:
    """Build a training's data where it is to begin; return the checkpoint it goes on from, too."""
    start = choose_start(runner)
    meta = start.meta if start else {}
    randomness = runner.cfg.get("randomness") or {}
    seeds_differ = bool(randomness.get("diff_rank_seed"))  # from process to process
    seed, saved = int(runner.seed), meta.get("seed")
    if saved is not None:  # mmengine takes it up later, when the data's order is drawn already
        seed = saved + get_rank() if seeds_differ else saved
        if seed != runner.seed and isinstance(runner, Runner):
            runner.set_randomness(**{**randomness, "seed": saved})
    seed_everything(seed)
    loader: DataLoader = runner.build_dataloader(dataloader, seed, seeds_differ)
    batches = loader.batch_sampler
    if isinstance(batches, PlacedBatchSampler):
        # A checkpoint of mmengine's own hook has no place.
        place = (meta.get("epoch", 0), 0) if by_epoch else (0, meta.get("iter", 0))
        epoch, skip = meta.get("place", place)
        batches.begin(seed, epoch, skip, order=meta.get("order"))
        tell_batch_size(loader, batches.batch_size)
    return loader, start


def validation_is_due(loop: HostEpochs | HostIterations) -> bool:
    """Tell whether a training has to validate where its loop is."""
    if loop.runner.val_loop is None:
        return False
    by_epoch = isinstance(loop, HostEpochs)
    now, end = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
    step = bisect.bisect(loop.dynamic_milestones, now + 1)
    loop.val_interval = loop.dynamic_intervals[step - 1]
    return bool(now >= max(loop.val_begin, 1) and (now % loop.val_interval == 0 or now == end))


@LOOPS.register_module()
class EpochBasedTrainLoop(HostEpochs):
    """Train by epochs, from the checkpoint's place in the data; the options are mmengine's."""

    def __init__(self, runner: Any, dataloader: Any, *args: Any, **options: Any) -> None:
        dataloader, self.start = build_data(runner, dataloader, by_epoch=True)
        super().__init__(runner, dataloader, *args, **options)


@LOOPS.register_module()
class IterBasedTrainLoop(HostIterations):
    """Train by iterations, from the checkpoint's place in the data; the options are mmengine's.

    mmengine's own loop would load all batches that were trained on, to pass over them.
    """

    def __init__(self, runner: Any, dataloader: Any, *args: Any, **options: Any) -> None:
        dataloader, self.start = build_data(runner, dataloader, by_epoch=False)
        super().__init__(runner, dataloader, *args, **options)

    def run(self) -> nn.Module:
        """Train to the end; return the model."""
        runner = self.runner
        runner.call_hook("before_train")
        runner.call_hook("before_train_epoch")  # all of it is one, for hooks
        if not isinstance(self.dataloader.batch_sampler, PlacedBatchSampler):
            for _ in range(self.iter):  # of a sampler that no config has made
                next(self.dataloader_iterator)
        while self.iter < self.max_iters and not self.stop_training:
            runner.model.train()
            self.run_iter(next(self.dataloader_iterator))
            if validation_is_due(self):
                runner.val_loop.run()
        runner.call_hook("after_train_epoch")
        runner.call_hook("after_train")
        return runner.model
