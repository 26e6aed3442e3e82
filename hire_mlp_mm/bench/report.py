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
    """List the settings and the machine, on which the figures depend."""
    device = settings.device
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    changed = [f"{key}={value}" for key, value in settings.cfg_options.items()]
    return dict(
        **(dict(model=" ".join([settings.config, *changed])) if settings.config else {}),
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
    """Return the processor's name, as Linux has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "CPU")


def table(candidates: Sequence[Figures], settings: Settings) -> str:
    """Write the figures as a table, with their ratios to those of a base.

    That is the reference, or of whole models the plain one, in float32 where that was measured; or
    else the last candidate.
    """
    name = "reference" if settings.config is None else "plain"
    bases = [c for c in candidates if c.name == name] or candidates[-1:]
    base = min(bases, key=lambda c: c.dtype != "float32")
    rows = [["network", "type", "params", "MACs", "median", "10 % to 90 %", "images/s"]]
    rows[0] += [f"of {full_name(base)}", "of limit", "peak", "kept"]
    for c in candidates:
        ordered = sorted(c.times)
        low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
        row = [c.name, c.dtype, f"{c.params / 1e6:.1f} M", f"{c.macs / 1e9:.1f} G"]
        row += [f"{short(c.median)} ms", f"{short(low)} to {short(high)} ms"]
        row += [short(settings.batch / c.median * 1e3)]
        row += [f"{c.median / base.median:.2f}", f"{c.median / c.limit:.2f}"]
        row += [f"{c.peak / 1e6:.0f} MB" if c.peak else "-"]
        row += [f"{c.kept / 1e6:.1f} MB" if c.kept else "-"]
        rows.append(row)
    facts = ", ".join(f"{key} {value}" for key, value in setting(settings).items())
    return f"{facts}\n\n{markdown(rows)}"


def table_of_kinds(candidates: Sequence[Figures]) -> str:
    """Write the milliseconds of each kind of operation as a table."""
    rows = [["operations", *map(full_name, candidates)]]
    rows += [[kind, *(f"{short(c.kinds[kind])} ms" for c in candidates)] for kind in KINDS]
    return f"\n{markdown(rows)}"


def table_of_parts(candidates: Sequence[Figures]) -> str:
    """Write the milliseconds of each part of whole models, and its share, as a table."""
    rows = [["part", *map(full_name, candidates)]]
    for part in dict.fromkeys(part for c in candidates for part in c.parts):
        spent = [(c.parts.get(part, 0.0), sum(c.parts.values())) for c in candidates]
        rows.append([part, *(f"{short(ms)} ms, {ms / total:.0%}" for ms, total in spent)])
    return f"\n{markdown(rows)}"


def full_name(candidate: Figures) -> str:
    """Return a candidate's name with its type."""
    kind = candidate.dtype
    return candidate.name if kind == "float32" else f"{candidate.name} {kind}"


def short(figure: float) -> str:
    """Write a figure with three digits, or as an integer."""
    return f"{figure:.0f}" if figure >= 100 else f"{figure:.3g}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Write rows, the heads first, as a table."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])
