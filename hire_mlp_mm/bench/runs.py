"""Measure candidates, each in a process of its own; the timed runs take turns."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch.nn import functional as F

from ..errors import UserError, describe
from .candidates import Candidate, Figures, Settings, parse_name
from .meters import profiled, timed


def measure(names: Sequence[str], settings: Settings) -> list[Figures]:
    """Measure candidates, each in a process of its own; the timed runs take turns.

    Args:
        names: as `parse_name` takes them.
        settings: of all of them.

    Raises:
        UserError: an unknown name, or a candidate that cannot be run.
    """
    for name in names:
        parse_name(name, settings.train)
    torch.set_num_threads(settings.threads)
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        workers: list[tuple[str, Connection]] = []
        candidates: list[Figures] = []
        for name in names:
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, name, settings), daemon=True)
            process.start()
            theirs.close()
            stack.callback(process.join)
            stack.callback(ours.close)  # before it is waited for: it ends when nobody asks
            candidates.append(answer_of(name, ours))
            workers.append((name, ours))
        rates = {c.dtype: Rates(settings.device, getattr(torch, c.dtype)) for c in candidates}
        for _ in range(settings.runs):
            for rate in rates.values():
                rate.measure()
            for candidate, (name, worker) in zip(candidates, workers, strict=True):
                candidate.times.append(answer_of(name, worker, ask="time"))
        if settings.profile:
            for candidate, (name, worker) in zip(candidates, workers, strict=True):
                candidate.kinds = answer_of(name, worker, ask="kinds")
    for candidate in candidates:
        candidate.limit = rates[candidate.dtype].limit(candidate)
    return candidates


def serve(asked: Connection, name: str, settings: Settings) -> None:
    """Send a candidate's figures, then what is asked for, the time of a run or of kinds."""
    try:
        candidate = Candidate(name, settings)
        asked.send(candidate.measure())
        answers = dict(time=timed, kinds=profiled)
        while True:
            answer = answers[asked.recv()]
            asked.send(answer(lambda: candidate.step(candidate.image), candidate.image))
    except EOFError:
        pass
    except Exception as error:  # told by the process that asked
        asked.send(describe(error))


def answer_of(name: str, worker: Connection, ask: str = "") -> Any:
    """Return what a candidate's process says next, once it is asked.

    Raises:
        UserError: it failed, or it is gone.
    """
    try:
        if ask:
            worker.send(ask)
        answer = worker.recv()
    except (EOFError, OSError):
        raise UserError(f"{name}: its process ended, perhaps for want of memory") from None
    if isinstance(answer, str):
        raise UserError(f"{name}: {answer}")
    return answer


class Rates:
    """Milliseconds of a multiply-add and of a copied byte, the best of all that were measured."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        n = 4096 if device.startswith("cuda") else 1024
        self.a, self.b = torch.rand(2, n, n, device=device).to(dtype)
        # The same product as a 1x1 convolution: on a CPU another library makes it.
        self.image, self.kernel = self.a.t().reshape(1, n, n, 1), self.b.view(n, n, 1, 1)
        self.source = torch.empty(2**26, dtype=torch.uint8, device=device)
        self.target = torch.empty_like(self.source)
        self.product = self.copy = math.inf

    def measure(self) -> None:
        """Time both once."""
        for work in (lambda: self.a @ self.b, lambda: F.conv2d(self.image, self.kernel)):
            self.product = min(self.product, timed(work, self.a) / len(self.a) ** 3)
        copy = timed(lambda: self.target.copy_(self.source), self.source)
        self.copy = min(self.copy, copy / len(self.source))

    def limit(self, candidate: Figures) -> float:
        """Tell how many milliseconds the multiply-adds take, or the bytes that must move."""
        return max(candidate.macs * self.product, candidate.moved * self.copy)
