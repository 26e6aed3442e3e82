"""Choose the checkpoint that a training goes on from: the newest whole one."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import time
import zipfile
from dataclasses import dataclass
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import CheckpointLoader

from ..errors import CheckpointError, UserError, first_line
from ..files import write_whole
from ..torch_file import load_data
from .config import NOTE, check_file, read_note

# What is needed of a checkpoint's meta.
META = ("epoch", "iter", "time", "saved", "seed", "order", "place", "validated")


@dataclass
class Start:
    """Name the checkpoint that a training goes on from, and hold what it says of the training."""

    path: str
    meta: dict[str, Any]  # of `META`; nothing if only another reader can tell

    def age(self) -> tuple[float, int]:
        """Return seconds and iterations, which order the checkpoints of several trainings."""
        saved = self.meta.get("saved")
        if not isinstance(saved, float):
            # mmengine's own time is local: an hour comes twice in autumn, and another machine may
            # be in another zone.
            saved = 0.0
            with contextlib.suppress(ValueError, OverflowError):
                written = time.strptime(str(self.meta.get("time")), "%Y%m%d_%H%M%S")
                saved = time.mktime(written)
        return saved, self.meta.get("iter", 0)


def choose_start(runner: Any) -> Start | None:
    """Choose the checkpoint that a runner goes on from, as `resume` of its config says.

    With `resume=True` alone it is the newest whole one of the work dir, and mmengine's note there
    is set right, so that mmengine finds it, too; with `load_from`, it is that one. It is an error
    if the one that was named is damaged, or all are. The first of several processes chooses.
    """
    if not runner.cfg.get("resume"):
        return None
    found: list[Any] = [None]
    if is_main_process():
        try:
            found[0] = find_start(runner, runner.cfg.get("load_from"))
        except UserError as error:
            found[0] = UserError(str(error))  # of a kind that can be sent
    broadcast_object_list(found)
    if isinstance(found[0], UserError):
        raise found[0]
    return found[0]


def find_start(runner: Any, named: str | None) -> Start | None:
    """Find the checkpoint that was named, or the newest whole one, if any, of a work dir."""
    noted = noted_checkpoint(runner)
    if named is None and noted and os.path.isdir(noted):  # saved in parts, by and for a strategy
        write_note(runner.work_dir, noted)
        named = noted
    if named is not None:
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
        line = f"going on from {start.path}, the newest whole checkpoint"
        runner.logger.log(WARNING if damaged else INFO, "; ".join([*damaged, line]))
        write_note(runner.work_dir, start.path)
        return start
    if damaged:
        raise UserError(
            f"--resume: {'; '.join(damaged)}; no whole checkpoint is left: name one of another "
            "folder, or start over in a new --work-dir"
        )
    runner.logger.warning(f"no checkpoint in {runner.work_dir}: training starts from the beginning")
    return None


def write_note(work_dir: str, path: str) -> None:
    """Set a work dir's note to a checkpoint, if it names another."""
    if read_note(work_dir) != path:
        write_whole(Path(work_dir, NOTE), path.encode())


def noted_checkpoint(runner: Any) -> str | None:
    """Return the path in the note of a runner's work dir, if there is one.

    A work dir that was copied or moved has the note of the original: the file of that name in the
    copy is meant, for the original may have gone on since.
    """
    noted = read_note(runner.work_dir)
    if noted is None or "://" in noted:
        return noted
    own = [os.path.join(folder, os.path.basename(noted)) for folder, _ in saving_places(runner)]
    return next(filter(os.path.exists, own), own[0] if own else noted)


def saving_places(runner: Any) -> list[tuple[str, str]]:
    """Return folder, and template of the names, of the checkpoints that a runner's hooks save."""
    name = os.path.basename(runner.work_dir)
    return [
        (os.path.join(hook.out_dir, name) if hook.out_dir else runner.work_dir, hook.filename_tmpl)
        for hook in runner.hooks
        if isinstance(hook, CheckpointHook)
    ]


def checkpoints(runner: Any, noted: str | None) -> set[str]:
    """Return paths of the noted checkpoint and of those that a runner's hooks would have saved."""
    found = {noted} if noted else set()
    for folder, template in saving_places(runner):
        pattern = "*".join(glob.escape(part) for part in re.split(r"\{[^}]*\}", template))
        found.update(glob.glob(os.path.join(glob.escape(folder), pattern)))
    return found


def has_checkpoint(cfg: Any) -> bool:
    """Tell whether a training of a config has saved something in its work dir, or was to."""
    hook = (cfg.get("default_hooks") or {}).get("checkpoint") or {}
    folders = [cfg.work_dir]
    if hook.get("out_dir"):
        folders.append(os.path.join(hook["out_dir"], os.path.basename(cfg.work_dir.rstrip("/"))))
    saved = any(glob.glob(os.path.join(glob.escape(folder), "*.pth")) for folder in folders)
    return saved or read_note(cfg.work_dir) is not None


def read_start(path: str) -> Start:
    """Read a checkpoint's meta, or raise UserError where it is gone, damaged, or of no training."""
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
    meta = meta_of_training(loaded, f"checkpoint {path}")
    return Start(path, {key: meta[key] for key in META if key in meta})


def meta_of_training(checkpoint: Any, name: str) -> dict[str, Any]:
    """Return a checkpoint's meta, or raise UserError where no training can go on from it."""
    kinds = dict(epoch=int, iter=int, log_scalars=dict, runtime_info=dict, resumed_keys=dict)
    parts = checkpoint if isinstance(checkpoint, dict) else {}
    meta, hub = parts.get("meta"), parts.get("message_hub")
    state = {**meta, **hub} if isinstance(meta, dict) and isinstance(hub, dict) else {}
    # The best and published ones have no optimizer: mmengine would go on with a fresh one.
    fits = all(isinstance(state.get(key), kind) for key, kind in kinds.items())
    if not fits or "optimizer" not in parts:
        raise UserError(
            f"{name} holds no state of a training to resume; for its weights alone, leave out "
            "--resume and give it by --cfg-options load_from=FILE"
        )
    return dict(meta or {})


def check_undamaged(path: str) -> None:
    """Read all of a checkpoint; raise UserError where it is damaged or would run code."""
    try:  # damage within tensors goes unnoticed when they are loaded
        if "://" not in path:
            load_data(path, mapped=True)
    except CheckpointError as error:
        raise UserError(f"checkpoint {error}") from error
