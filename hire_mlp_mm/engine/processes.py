"""Processes of a run: how they start on a CPU, and end with each other."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys

import torch
from mmengine.config import Config
from torch import distributed as dist


def end_with_parent() -> None:
    """Have the kernel end this process when the one that started it is gone.

    An agent of torchrun that is killed would leave its processes running, unnoticed by the other
    machines; and a training its processes that load data. Linux only.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def join_processes_on_cpu(cfg: Config) -> None:
    """Start torch.distributed on the CPU, for which mmengine's launchers want a GPU."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    cfg.sync_bn = None  # torch has SyncBN for GPUs only
    cfg.model_wrapper_cfg = dict(
        type="MMDistributedDataParallel",
        device_ids=None,
        broadcast_buffers=False,
        find_unused_parameters=cfg.get("find_unused_parameters", False),
    )


def leave_process_group() -> None:
    """End a process of several whose work is done."""
    if not dist.is_initialized():
        return
    if dist.get_backend() != "gloo":
        dist.destroy_process_group()
        return
    # Now and then gloo's threads abort a process that is being taken down in order ("terminate
    # called without an active exception"), and its launcher reports a failure.
    dist.barrier()
    leave_at_once(0)


def leave_at_once(code: int) -> None:
    """End a process of several, not taken down in order, with what it has said.

    In order, it may wait for minutes for what others would have sent that are gone.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def lost_contact(error: Exception) -> bool:
    """Tell whether an error is one of torch.distributed; gloo's have no type of their own."""
    return isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error)
