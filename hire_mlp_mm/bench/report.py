"""Write the figures of a benchmark as tables."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .candidates import Figures, Settings
from .meters import KINDS


def setting(settings: Settings) -> dict[str, Any]:
    """Tell what the figures depend on."""
    gpu = torch.cuda.get_device_name() if settings.device.startswith("cuda") else None
    return dict(
        size="{}x{}".format(*settings.size),
        batch=settings.batch,
        mode="training step" if settings.train else "inference",
        runs=settings.runs,
        device=gpu or cpu_name(),
        threads=settings.threads,
        torch=torch.__version__,
        python=platform.python_version(),
    )


def cpu_name() -> str:
    """Tell the processor's name, as Linux has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "CPU")


def table(candidates: Sequence[Figures], settings: Settings) -> str:
    """Write the figures as a table; ratios are to the reference, or to the last candidate."""
    base = next((c for c in candidates if c.name == "reference"), candidates[-1])
    lines = [", ".join(f"{key} {value}" for key, value in setting(settings).items()), ""]
    lines += [
        f"| network | type | params | MACs | median | 10 % to 90 % | of {base.name} | of limit | "
        f"peak | kept |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for c in candidates:
        ordered = sorted(c.times)
        low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
        cells = [
            c.name,
            c.dtype,
            f"{c.params / 1e6:.1f} M",
            f"{c.macs / 1e9:.1f} G",
            f"{c.median:.0f} ms",
            f"{low:.0f} to {high:.0f} ms",
            f"{c.median / base.median:.2f}",
            f"{c.median / c.limit:.2f}",
            f"{c.peak / 1e6:.0f} MB" if c.peak else "-",
            f"{c.kept / 1e6:.1f} MB" if c.kept else "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def table_of_kinds(candidates: Sequence[Figures]) -> str:
    """Write the milliseconds of each kind of operation as a table."""
    lines = ["", f"| operations | {' | '.join(c.name for c in candidates)} |"]
    lines.append("|---" * (1 + len(candidates)) + "|")
    for kind in KINDS:
        times = (f"{c.kinds[kind]:.0f} ms" for c in candidates)
        lines.append(f"| {kind} | {' | '.join(times)} |")
    return "\n".join(lines)
