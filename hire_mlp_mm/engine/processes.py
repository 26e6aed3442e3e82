"""Start the processes of a run on a CPU, and have them end with each other."""

from __future__ import annotations

import ctypes
import signal
import sys

from mmengine.config import Config
from torch import distributed as dist


def end_with_parent() -> None:
    """Have the kernel end this process when the one that started it is gone. Linux only.

    An agent of torchrun that is killed would leave its processes running, unnoticed by the other
    machines; and a training would leave its processes that load data.
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


def lost_contact(error: Exception) -> bool:
    """Tell whether an error is one of torch.distributed; gloo's have no type of their own."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)
