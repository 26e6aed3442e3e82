"""Go on after a crash as if nothing had happened: whole checkpoints, and randomness by place.

Where a batch stands in the stream of data (its epoch and its number in it) and the training's
seed say which images it holds and how each of them is augmented; the iteration's number says what
the model draws. So a training that goes on from a checkpoint needs no random state: it begins the
stream at the right place, and ends with the same weights, bit for bit on a CPU.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import random
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import UserError, check_file, end_with_parent
from _loading import ALLOWED, NO_TRAINING
from mmengine.dist import broadcast, broadcast_object_list, get_rank, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import (
    CheckpointLoader,
    EpochBasedTrainLoop,
    IterBasedTrainLoop,
    Runner,
    set_random_seed,
)
from torch.utils.data import BatchSampler, Dataset

from hire_mlp_mm.checkpoint import CheckpointError, first_line
from hire_mlp_mm.torch_file import load_data

NOTE = "last_checkpoint"  # mmengine's, in the work dir: the path of the newest checkpoint
OUTDATED = "outdated_ckpts"  # in the log that checkpoints hold: former best ones
# What is needed of a checkpoint's meta.
META = ("epoch", "iter", "time", "saved", "seed", "place", "validated")
# What is random: the model, a validation, a sample, the order of the samples.
STEP, VALIDATION, SAMPLE, ORDER = range(4)
CURE = "the checkpoints before are whole, and --resume goes on from the newest of them"


@dataclass
class Start:
    """Where a training goes on.

    Args:
        path: the checkpoint.
        meta: what it says of the training that saved it; nothing if only its reader can tell.
    """

    path: str
    meta: dict[str, Any]

    def age(self) -> tuple[float, int]:
        """What orders checkpoints: a work dir may hold those of an earlier training, too.

        Seconds and iterations. Mmengine's own time is local: an hour comes twice in autumn, and
        another machine may be in another zone.
        """
        saved = self.meta.get("saved")
        if not isinstance(saved, float):
            saved = 0.0
            with contextlib.suppress(ValueError, OverflowError):
                written = time.strptime(str(self.meta.get("time")), "%Y%m%d_%H%M%S")
                saved = time.mktime(written)
        return saved, self.meta.get("iter", 0)


def make_resumable(runner: Runner, resume: str | None) -> None:
    """Have a runner's training survive a crash, and go on from a checkpoint if asked to.

    Args:
        runner: has not begun.
        resume: a checkpoint to go on from, or `auto` for the newest whole one of the work dir, if
            there are any.

    Raises:
        UserError: there are checkpoints, and none that could be gone on from.
    """
    register_backend("local", WholeFiles, force=True, prefixes="")
    # Torch's workers watch their parent, too, but wait for ever with much left to hand over.
    os.register_at_fork(after_in_child=end_with_parent)
    for hook in runner.hooks:
        if type(hook) is CheckpointHook:
            hook.__class__ = LateRemoval
    start = agree(partial(find_start, runner, resume)) if resume else None
    runner._resume = start is not None
    if start:
        runner._load_from = start.path
    settings = dict(runner._randomness_cfg, seed=runner.seed)
    different = bool(settings.get("diff_rank_seed"))
    seed = start.meta.get("seed") if start else None
    if seed is not None:
        # Other than mmengine, which takes up the seed after the data's order has been drawn.
        getattr(runner, "strategy", runner)._seed = set_random_seed(seed, False, different)
    seed_everything(runner.seed)
    loader = runner.build_dataloader(runner._train_dataloader, runner.seed, different)
    batches = PlacedBatches(loader.batch_sampler, runner.seed)
    if start and "place" in start.meta:
        batches.epoch, batches.skip = start.meta["place"]
    vars(loader)["batch_sampler"] = batches  # as an attribute, torch guards it
    own = getattr(loader.dataset, "__getitems__", None)
    loader.dataset.__getitems__ = partial(load, loader.dataset, own, (runner.seed, get_rank()))
    runner._train_dataloader = loader
    runner.register_hook(PlaceHook(batches, runner.seed))
    runner.register_hook(OneModelHook())
    if start and "place" in start.meta:
        runner.register_hook(CatchUpHook(start))


# Randomness by place ----------------------------------------------------------------------------


def seed_everything(*place: int) -> None:
    """Seed Python's, numpy's and torch's generators with numbers that together say where we are."""
    seed = int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0])
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def get_state() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def set_state(state: tuple[Any, ...]) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])


class Batch(list):
    """Indices of a batch's samples, and where in the stream they stand: epoch and number."""

    place: tuple[int, int]


class PlacedBatches:
    """A loader's batch sampler that can begin anywhere, whose batches know their place.

    Args:
        batches: the batch sampler; everything else about it remains visible.
        seed: for a sampler that draws from the global generators.
    """

    def __init__(self, batches: BatchSampler, seed: int) -> None:
        self.batches, self.seed = batches, seed
        self.epoch = 0  # of the next pass
        self.skip = 0  # batches that were trained on, from that pass on

    def __getattr__(self, name: str) -> Any:
        if name == "batches":  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.batches, name)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            left = self.skip
            yield from self.one_pass()
            if self.skip in (0, left):  # nothing more to skip, or no batches at all
                return

    def one_pass(self) -> Iterator[Batch]:
        """The batches of an epoch that are not to be skipped."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        if hasattr(self.batches.sampler, "set_epoch"):
            self.batches.sampler.set_epoch(epoch)
        seed_everything(self.seed, ORDER, epoch)
        stream = iter(self.batches)
        first = sum(1 for _ in itertools.islice(stream, self.skip))
        self.skip -= first
        state = get_state()
        for number in itertools.count(first):
            set_state(state)
            indices = next(stream, None)
            state = get_state()
            if indices is None:
                return
            batch = Batch(indices)
            batch.place = (epoch, number)
            yield batch


def load(dataset: Dataset, own: Callable | None, seed: tuple[int, ...], batch: list) -> list:
    """A batch's samples, each augmented as its place says; a `__getitems__` of a data set.

    Args:
        dataset: what to load from.
        own: the data set's own `__getitems__`, if it has one.
        seed: of this process.
        batch: indices; only those of a `Batch` have a place.
    """
    place = getattr(batch, "place", ())
    if own:
        seed_everything(*seed, SAMPLE, *place)
        return own(batch)
    samples = []
    for position, index in enumerate(batch):
        if place:
            seed_everything(*seed, SAMPLE, *place, position)
        samples.append(dataset[index])  # type: ignore[index]
    return samples


class PlaceHook(Hook):
    """Seeds every step and validation, and writes into checkpoints where in the data they stand."""

    priority = "HIGHEST"  # before anything draws or saves

    def __init__(self, batches: PlacedBatches, seed: int) -> None:
        self.batches, self.seed = batches, seed
        self.done = 0  # batches of this epoch
        self.validated = False

    def before_train_epoch(self, runner: Runner) -> None:
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            self.batches.epoch = runner.epoch
            self.done = self.batches.skip

    def before_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        seed_everything(self.seed, get_rank(), STEP, runner.iter)

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        self.done += 1
        self.validated = False

    def after_train_epoch(self, runner: Runner) -> None:
        self.done = 0

    def before_val_epoch(self, runner: Runner) -> None:
        seed_everything(self.seed, get_rank(), VALIDATION, runner.iter)

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        self.validated = True

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        meta = checkpoint["meta"]
        if isinstance(runner.train_loop, EpochBasedTrainLoop):
            meta["place"] = (meta["epoch"], self.done)
        else:
            meta["place"] = (0, meta["iter"])
        meta["validated"] = self.validated
        meta["saved"] = time.time()


class OneModelHook(Hook):
    """Has all processes validate the model that the first of them saves.

    Without SyncBN each has running statistics of its own, and a checkpoint holds the first one's.
    """

    priority = "LOWEST"  # after an average has taken the model's place

    def before_val_epoch(self, runner: Runner) -> None:
        for buffer in runner.model.buffers():
            broadcast(buffer)


class CatchUpHook(Hook):
    """Brings a training that goes on to where its checkpoint was."""

    priority = "LOWEST"  # when all is ready

    def __init__(self, start: Start) -> None:
        self.start = start

    def before_train(self, runner: Runner) -> None:
        loop = runner.train_loop
        if isinstance(loop, IterBasedTrainLoop):
            loop.dataloader_iterator = AlreadyThere(loop)
        # Killed between saving and validating, it would never be validated at this place, where
        # its best checkpoint may be.
        if not self.start.meta["validated"] and validation_is_due(runner):
            runner.logger.info("validating what was saved and not validated any more")
            runner.val_loop.run()


class AlreadyThere:
    """Takes the place of a loop's data while mmengine skips what was trained on by loading it."""

    def __init__(self, loop: IterBasedTrainLoop) -> None:
        self.loop, self.data, self.left = loop, loop.dataloader_iterator, loop.iter

    def __next__(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.loop.dataloader_iterator = self.data

    def skip_iter(self, count: int) -> None:
        """What onedl-mmengine calls instead, once."""
        self.loop.dataloader_iterator = self.data


def validation_is_due(runner: Runner) -> bool:
    """Whether mmengine's loops would validate at this place, having trained up to it."""
    loop = runner.train_loop
    if runner.val_loop is None:
        return False
    loop._decide_current_val_interval()
    if not isinstance(loop, EpochBasedTrainLoop):
        now, end = loop.iter, loop.max_iters
    elif loop.dataloader.batch_sampler.skip:  # within an epoch
        return False
    else:
        now, end = loop.epoch, loop.max_epochs
    return now >= max(loop.val_begin, 1) and (now % loop.val_interval == 0 or now == end)


# Which checkpoint to go on from -----------------------------------------------------------------


def agree(find: Callable[[], Start | None]) -> Start | None:
    """What the first of several processes finds, in all of them.

    Raises:
        UserError: it finds an error.
    """
    found: list[Any] = [None]
    if is_main_process():
        try:
            found[0] = find()
        except UserError as error:
            found[0] = error
    broadcast_object_list(found)
    if isinstance(found[0], UserError):
        raise found[0]
    return found[0]


def find_start(runner: Runner, resume: str) -> Start | None:
    """The checkpoint that was named, or with `auto` the newest whole one of a runner's work dir.

    Returns:
        None if there is no checkpoint, nor was there ever one.

    Raises:
        UserError: the one that was named is damaged, or all of them are.
    """
    noted = noted_checkpoint(runner)
    named = resume if resume != "auto" else noted if os.path.isdir(noted or "") else None
    if named:
        start = read_start(named)
        check_undamaged(named)
        return start
    damaged, starts = [], []
    for path in sorted(checkpoints(runner, noted)):
        try:
            starts.append(read_start(path))
        except UserError as error:
            damaged.append(str(error))
    for start in sorted(starts, key=Start.age, reverse=True):
        try:
            check_undamaged(start.path)
        except UserError as error:
            damaged.append(str(error))
            continue
        what = f"going on from {start.path}, the newest whole checkpoint"
        runner.logger.log(WARNING if damaged else INFO, "; ".join([*damaged, what]))
        return start
    if damaged:
        raise UserError(
            f"--resume: {'; '.join(damaged)}; no whole checkpoint is left: name one of another "
            "folder, or start over in a new --work-dir"
        )
    runner.logger.warning(f"no checkpoint in {runner.work_dir}: training starts from the beginning")
    return None


def read_note(work_dir: str) -> str | None:
    """The path in a work dir's note of its newest checkpoint, if there is such a note."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return Path(work_dir, NOTE).read_text(encoding="utf-8").strip("\0 \n") or None
    return None


def noted_checkpoint(runner: Runner) -> str | None:
    """The path in the note of a runner's work dir, if there is one.

    A work dir that was copied or moved has the note of the one that it was: the file of that name
    that it holds itself is meant, for the other one may have gone on since.
    """
    noted = read_note(runner.work_dir)
    if noted is None or "://" in noted:
        return noted
    own = [os.path.join(folder, os.path.basename(noted)) for folder, _ in saving_places(runner)]
    return next(filter(os.path.exists, own), own[0] if own else noted)


def saving_places(runner: Runner) -> list[tuple[str, str]]:
    """Folder, and template of the names, of the checkpoints that a runner's hooks save."""
    name = os.path.basename(runner.work_dir)
    return [
        (os.path.join(hook.out_dir, name) if hook.out_dir else runner.work_dir, hook.filename_tmpl)
        for hook in runner.hooks
        if isinstance(hook, CheckpointHook)
    ]


def checkpoints(runner: Runner, noted: str | None) -> set[str]:
    """Paths of the noted checkpoint and of those that a runner's hooks would have saved."""
    found = {noted} if noted else set()
    for folder, template in saving_places(runner):
        found.update(glob.glob(os.path.join(glob.escape(folder), template.format("*"))))
    return found


def read_start(path: str) -> Start:
    """What a checkpoint says of the training that saved it.

    Raises:
        UserError: it is gone, damaged, or not of a training.
    """
    if os.path.isdir(path):  # saved by another's means (DeepSpeed), and left to them
        return Start(path, {})
    check_file(path, "checkpoint")
    try:
        if "://" in path:
            loaded = CheckpointLoader.load_checkpoint(path, map_location="cpu")
        else:  # mapped, not read: this costs next to nothing
            mapped = zipfile.is_zipfile(path)
            loaded = torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
    except Exception as error:  # a damaged file can make its reader raise anything
        check_undamaged(path)  # says what is wrong, as a rule
        raise UserError(f"checkpoint {path} cannot be read: {first_line(error)}") from error
    parts = loaded if isinstance(loaded, dict) else {}
    meta = parts.get("meta")
    # The best and published ones have no optimizer: mmengine would go on with a fresh one.
    known = isinstance(meta, dict) and {"epoch", "iter"} <= meta.keys()
    if not known or not {"message_hub", "optimizer"} <= parts.keys():
        raise UserError(f"checkpoint {path} {NO_TRAINING}")
    return Start(path, {key: meta[key] for key in META if key in meta})


def check_undamaged(path: str) -> None:
    """Read all of a checkpoint, for damage within tensors goes unnoticed when they are loaded.

    Raises:
        UserError: it is damaged, or would run code.
    """
    try:
        if "://" not in path:
            load_data(path, ALLOWED, mapped=True)
    except CheckpointError as error:
        raise UserError(f"checkpoint {error}") from error


# Whole files ------------------------------------------------------------------------------------


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file that has all of its data as soon as it has its name, even if the power goes.

    Raises:
        UserError: it cannot be written, for lack of space for instance; nothing is left of it.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise UserError(f"{path} cannot be written: {error.strerror}; {CURE}") from error
    with contextlib.suppress(OSError):  # not every file system has this
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class WholeFiles(LocalBackend):
    """Local files as mmengine writes them, but never in part under their own names."""

    def put(self, obj: bytes | memoryview, filepath: str | os.PathLike[str]) -> None:
        write_whole(filepath, bytes(obj) if isinstance(obj, memoryview) else obj)


class LateRemoval(CheckpointHook):
    """Mmengine's hook, which removes an old checkpoint before it saves a new one, in safe order."""

    readable = False  # as far as is known

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        kept = list(self.keep_ckpt_ids) if self.max_keep_ckpts > 0 else []
        if kept[-1:] != [step]:  # else it is saved again, as the best one
            kept.append(step)
        if self.max_keep_ckpts > 0:
            # With the one to be removed: mmengine removes it when it goes on after a crash.
            runner.message_hub.update_info("keep_ckpt_ids", kept)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            self.check_readable()
            write_whole(Path(runner.work_dir, NOTE), self.last_ckpt.encode())
        if self.max_keep_ckpts > 0:
            for outdated in kept[: -self.max_keep_ckpts]:
                path = self.file_backend.join_path(
                    self.out_dir, self.filename_tmpl.format(outdated)
                )
                remove(self.file_backend, path)
            self.keep_ckpt_ids = deque(kept, self.max_keep_ckpts)
            runner.message_hub.update_info("keep_ckpt_ids", list(self.keep_ckpt_ids))

    def check_readable(self) -> None:
        """Stop at the first checkpoint, not after the crash, if it holds what is not read again.

        Raises:
            UserError: it does, from a hook of the config or its data set's metainfo.
        """
        if not self.readable and os.path.isfile(self.last_ckpt):
            try:
                check_undamaged(self.last_ckpt)
            except UserError as error:
                raise UserError(f"what this training saves cannot be loaded: {error}") from error
        self.readable = True

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        backend = self.file_backend
        self.file_backend = LateBackend(backend, runner)
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            self.file_backend = backend
        self.remove_outdated(runner)

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        self.remove_outdated(runner)  # what a crash kept from being removed

    def remove_outdated(self, runner: Runner) -> None:
        """Remove what is not the best checkpoint any more, of this work dir alone.

        The paths are those of the training that saved the checkpoint which this one went on from;
        where that had another work dir, its files stay.
        """
        best = {getattr(self, "best_ckpt_path", None)}
        best.update(getattr(self, "best_ckpt_path_dict", {}).values())
        for path in runner.message_hub.runtime_info.get(OUTDATED, []):
            own = self.file_backend.join_path(self.out_dir, os.path.basename(path))
            if path == own and path not in best:
                remove(self.file_backend, path)
        runner.message_hub.update_info(OUTDATED, [])


class LateBackend:
    """A file backend that only notes what it is to remove, where checkpoints keep it."""

    def __init__(self, backend: Any, runner: Runner) -> None:
        self.backend, self.hub = backend, runner.message_hub

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        self.hub.update_info(OUTDATED, [*self.hub.runtime_info.get(OUTDATED, []), path])

    rmtree = remove  # DeepSpeed's checkpoints are folders


def remove(backend: Any, path: str) -> None:
    """Remove a checkpoint, in the first of several processes."""
    if not is_main_process():
        return
    if backend.isfile(path):
        backend.remove(path)
    elif backend.isdir(path):
        backend.rmtree(path)
