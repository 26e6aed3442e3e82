"""Draw everything that is random by its place.

Where a batch stands in the stream of data (its epoch and its number in it) and the training's
seed say which images it holds and how each of them is augmented; the iteration's number says what
the model draws. So a training that goes on from a checkpoint needs no random state: it begins the
stream at the right place, and ends with the same weights, bit for bit on a CPU.
"""

from __future__ import annotations

import itertools
import os
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.registry import DATA_SAMPLERS as ROOT_SAMPLERS
from mmengine.registry import FUNCTIONS as ROOT_FUNCTIONS
from torch.utils.data import BatchSampler, get_worker_info

from ..registry import DATA_SAMPLERS, FUNCTIONS
from .processes import end_with_parent

# What is random: the model, a validation, a sample, the order of the samples.
STEP, VALIDATION, SAMPLE, ORDER = range(4)


def seed_everything(*place: int) -> None:
    """Seed Python's, numpy's and torch's generators with numbers that together name a place."""
    seed = int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0])
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def get_state() -> tuple[Any, ...]:
    """Return the state of all three generators."""
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def set_state(state: tuple[Any, ...]) -> None:
    """Put all three generators into a state."""
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])


@dataclass
class Batch(Sequence[int]):
    """Hold the indices of a batch's samples, and seed the process before each is handed out.

    A data loader's worker takes them one by one to load the samples, so each is augmented as its
    place says, in whichever process.
    """

    indices: Sequence[int]
    seed: tuple[int, ...]  # of the training, and the rank
    place: tuple[int, int]  # epoch of the batch, and its number in it

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: Any) -> Any:
        return self.indices[position]

    def __iter__(self) -> Iterator[int]:
        for position, index in enumerate(self.indices):
            seed_everything(*self.seed, SAMPLE, *self.place, position)
            yield index


@DATA_SAMPLERS.register_module()
@dataclass(eq=False)
class PlacedBatchSampler:
    """Sample batches from any place of the stream on.

    Until `begin` is called, the batches are those of `batch_sampler`, or else of torch's own.
    """

    sampler: Any  # of the indices
    batch_size: int
    batch_sampler: dict[str, Any] | None = None  # config of the one that groups the indices
    drop_last: bool = False

    def __post_init__(self) -> None:
        self.batches: Any = BatchSampler(self.sampler, self.batch_size, self.drop_last)
        if self.batch_sampler is not None:
            given = dict(sampler=self.sampler, batch_size=self.batch_size)
            self.batches = ROOT_SAMPLERS.build(self.batch_sampler, default_args=given)
        self.seed: int | None = None
        self.epoch = 0  # of the next pass
        self.skip = 0  # batches that were trained on, from that pass on

    def begin(self, seed: int, epoch: int = 0, skip: int = 0, order: int | None = None) -> None:
        """Begin the stream `skip` batches after an epoch's first; `order` is the sampler's seed."""
        self.seed, self.epoch, self.skip = seed, epoch, skip
        if order is not None and self.order is not None:
            self.sampler.seed = order

    @property
    def order(self) -> int | None:
        """Return the seed of the sampler, where it has one: with `diff_rank_seed` it is drawn."""
        return getattr(self.sampler, "seed", None)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Sequence[int]]:
        if self.seed is None:
            yield from self.batches
            return
        while True:
            left = self.skip
            yield from self.one_pass(self.seed)
            if self.skip in (0, left):  # nothing more to skip, or no batches at all
                return

    def one_pass(self, seed: int) -> Iterator[Batch]:
        """Yield the batches of an epoch that are not to be skipped."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)
        seed_everything(seed, ORDER, epoch)
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
            yield Batch(list(indices), (seed, get_rank()), (epoch, number))


@FUNCTIONS.register_module()
def start_worker(worker_id: int, then: Any = None, quiet: bool = False) -> None:
    """Have a data loader's worker end with its parent, and draw what torch's seed says.

    `then` is the config of a user's `worker_init_fn`; `quiet` silences all workers but the first.
    """
    end_with_parent()  # torch's workers watch it, too, but wait for ever with much to hand over
    info = get_worker_info()
    if info is not None:  # torch's seed is that of the same worker in other processes of the run
        seed_everything(info.seed, int(os.environ.get("RANK", get_rank())))
    if quiet and worker_id:
        warnings.simplefilter("ignore")
    if then is not None:
        options = dict(then)
        kind = options.pop("type")
        function = ROOT_FUNCTIONS.get(kind) if isinstance(kind, str) else kind
        assert callable(function)
        function(worker_id, **options)
