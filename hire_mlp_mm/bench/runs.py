"""Measure candidates, each in a process of its own; the timed runs take turns."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch.nn import functional as F

from ..errors import UserError, describe
from .candidates import Candidate, Figures, Settings, parse_name, set_up
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
        parse_name(name, settings)
    set_up(settings)
    with ExitStack() as stack:
        started: Iterable[Connection] = (start(name, settings, stack) for name in names)
        if settings.device.startswith("cuda"):
            started = list(started)  # at once, and not one by one: compilers take the time
        pairs = zip(names, started, strict=True)
        workers = [(answer_of(name, worker), name, worker) for name, worker in pairs]
        candidates: list[Figures] = [candidate for candidate, _, _ in workers]
        rates = {c.dtype: Rates(settings.device, getattr(torch, c.dtype)) for c in candidates}
        for _ in range(settings.runs):
            for rate in rates.values():
                rate.measure()
            for candidate, name, worker in workers:
                candidate.times.append(answer_of(name, worker, ask="time"))
        for candidate, name, worker in workers:
            if settings.config is not None:
                candidate.parts = answer_of(name, worker, ask="parts")
            if settings.profile:
                candidate.kinds = answer_of(name, worker, ask="kinds")
    for candidate in candidates:
        candidate.limit = rates[candidate.dtype].limit(candidate)
    return candidates


def start(name: str, settings: Settings, stack: ExitStack) -> Connection:
    """Start a candidate's process, which ends with the stack; return the connection to it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, name, settings), daemon=True)
    process.start()
    theirs.close()
    stack.callback(process.join)
    stack.callback(ours.close)  # before it is waited for: it ends when nobody asks
    return ours


def serve(connection: Connection, name: str, settings: Settings) -> None:
    """Send a candidate's figures, then the time of a run, of kinds or parts, whenever asked."""
    try:
        candidate = build(name, settings)
        connection.send(candidate.measure())
        run, image = partial(candidate.step, candidate.image), candidate.image
        answers: dict[str, Callable[[], Any]] = dict(
            time=partial(timed, run, image),
            kinds=partial(profiled, run, image),
            parts=lambda: candidate.shares(),
        )
        while True:
            connection.send(answers[connection.recv()]())
    except (EOFError, ConnectionError):  # nobody asks any more
        pass
    except Exception as error:  # told by the process that asked
        connection.send(str(error) if isinstance(error, UserError) else describe(error))


def build(name: str, settings: Settings) -> Any:
    """Build a candidate: a backbone, which needs no hosts, or a whole model."""
    if settings.config is None:
        return Candidate(name, settings)
    import hire_mlp_mm

    from .wholes import Whole

    hire_mlp_mm.register_if_possible()  # a process of the command `hire-mlp` has not yet
    return Whole(name, settings)


def answer_of(name: str, worker: Connection, ask: str = "") -> Any:
    """Return a candidate's next answer; raise UserError where it failed, or is gone."""
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
    """Hold the milliseconds of a multiply-add and of a copied byte, the best of several runs."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        n, copied = (8192, 2**30) if device.startswith("cuda") else (1024, 2**26)
        self.a, self.b = torch.rand(2, n, n, device=device).to(dtype)
        # The same product as a 1x1 convolution: on a CPU another library makes it.
        self.image, self.kernel = self.a.t().reshape(1, n, n, 1), self.b.view(n, n, 1, 1)
        self.source = torch.empty(copied, dtype=torch.uint8, device=device)
        self.target = torch.empty_like(self.source)
        self.product = self.copy = math.inf

    def measure(self) -> None:
        """Time each once."""
        for work in (lambda: self.a @ self.b, lambda: F.conv2d(self.image, self.kernel)):
            self.product = min(self.product, timed(work, self.a) / len(self.a) ** 3)
        copy = timed(lambda: self.target.copy_(self.source), self.source)
        self.copy = min(self.copy, copy / len(self.source))

    def limit(self, candidate: Figures) -> float:
        """Return how many milliseconds the multiply-adds take, or the bytes that must move."""
        return max(candidate.macs * self.product, candidate.moved * self.copy)
