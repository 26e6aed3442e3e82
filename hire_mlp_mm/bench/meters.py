"""Measure some work: its time, its memory, the operations that take the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile

from ..memory import restore_defaults, return_memory, trim

# Parts of the names of operations. What several lines have belongs to the first.
KINDS = {
    "gradients of convolutions": ("convolution_backward", "mm_backward"),
    "convolutions, matrix products": (
        *("_convolution", "aten::addmm", "aten::mm", "aten::bmm"),
        *("aten::baddbmm", "_linear_pointwise"),
    ),
    "norms, their gradients": ("batch_norm", "layer_norm"),
    "GELU, ReLU, their gradients": ("gelu", "aten::relu", "threshold_backward"),
    "copies": ("aten::copy_", "aten::cat", "aten::fill_", "aten::roll", "aten::index_select"),
    "sums and products": ("aten::add", "aten::mul", "aten::sum", "aten::div", "aten::mean"),
    "all else": ("",),
}
PROFILED = 5  # runs
# Writing 5 here makes Linux forget the process's highest memory.
RESET = Path("/proc/self/clear_refs")


def timed(work: Callable[[], object], where: Tensor) -> float:
    """Return how many milliseconds of wall time some work takes."""
    wait_for(where)
    start = time.perf_counter()
    work()
    wait_for(where)
    return (time.perf_counter() - start) * 1e3


def profiled(work: Callable[[], object], where: Tensor) -> dict[str, float]:
    """Return how many milliseconds each of `KINDS` takes in a run."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * where.is_cuda
    with profile(activities=activities, acc_events=True) as profiler:
        for _ in range(PROFILED):
            work()
        wait_for(where)
    kinds = dict.fromkeys(KINDS, 0.0)
    for event in profiler.key_averages():
        if event.device_type == DeviceType.CPU:  # a kernel's time is its operation's, too
            kind = next(k for k, parts in KINDS.items() if any(part in event.key for part in parts))
            time = event.self_device_time_total if where.is_cuda else event.self_cpu_time_total
            kinds[kind] += time / 1e3 / PROFILED
    return kinds


def wait_for(where: Tensor) -> None:
    """Let a GPU finish its work."""
    if where.is_cuda:
        torch.cuda.synchronize(where.device)


def kept_bytes(model: nn.Module, image: Tensor) -> int:
    """Count the bytes that a forward pass keeps for the backward one, but parameters and image."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        outputs = model(image)  # alive until counted, or their storages would be counted again
    for x in (*model.parameters(), image):
        kept.pop(x.untyped_storage().data_ptr(), None)
    del outputs
    return sum(kept.values())


def peak_bytes(work: Callable[[], None], where: Tensor, before: int | None = None) -> int:
    """Count the bytes at the highest point of some work, beyond `before`.

    On a GPU these are torch's; on a CPU the process's, which Linux alone tells: 0 elsewhere. By
    itself glibc keeps much of what is freed, and the gaps in it: a third more, in a training.

    Args:
        work: is done once.
        where: a tensor on the device of the work.
        before: as `start_peak` has counted it; None for what is taken when the work begins.
    """
    taken = start_peak(where)
    work()
    if RESET.exists():
        restore_defaults()
    top = torch.cuda.max_memory_allocated(where.device) if where.is_cuda else resident_peak()
    return top - (taken if before is None else before)


def start_peak(where: Tensor) -> int:
    """Count the bytes that are taken now, and forget that there ever were more.

    Until `peak_bytes` is done, what is freed is returned at once, where that pays.
    """
    if where.is_cuda:
        torch.cuda.reset_peak_memory_stats(where.device)
        return torch.cuda.memory_allocated(where.device)
    if not RESET.exists():
        return 0
    return_memory()
    trim()  # or what is free would hide what is taken now
    RESET.write_text("5")
    return resident_peak()


def resident_peak() -> int:
    """Count the most bytes that this process held since `RESET`; 0 where that cannot be told."""
    if not RESET.exists():
        return 0
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
