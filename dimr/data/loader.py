"""Training batches: the same for the same seed, whatever the number of workers and processes, and resumable."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from .dataset import Dataset
from .errors import DataError
from .randomness import permutation
from .reading import MAX_ATTEMPTS, Batch, RandomReader, read_batches
from .skips import SkipLog


class TrainingLoader:
    """Endless batches over a data set, for one of ``world_size`` processes.

    All epochs in a row, each in an order of its own, are one sequence. A step of training takes the next
    ``world_size * batch_size`` places of it, of which process ``rank`` gets the ``rank``-th ``batch_size``. So in
    every epoch each sample comes once, all batches are full, and a batch may hold the end of an epoch and the
    beginning of the next. Whichever way a global batch is divided, over processes or over steps of accumulation, its
    samples are the same, and so is what chance does to each of them.

    An unreadable sample is replaced by another, the same whenever that place of the sequence is read, and counted.

    Attributes:
        consumed: places of the sequence in the batches handed out so far, over all processes.
        skips: what this process could not read, see :class:`SkipLog`; the limit is the data set's ``max_skipped``.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be from 0 to world_size - 1 = {world_size - 1}, got {rank}")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed must be from 0 to 2^63 - 1, got {seed}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.consumed = 0
        self.skips = SkipLog(dataset.max_skipped)
        self.skips.record(dataset.missing)

    def __iter__(self) -> Iterator[Batch]:
        """From where the last batch handed out ended; what workers have read ahead does not count.

        Raises:
            DataError: more files are unreadable than the data set allows.
        """
        reader = RandomReader(self.dataset, self.seed)
        for batch in read_batches(reader, self._places(), self.num_workers, self.pin_memory):
            self.skips.record(batch.skipped)
            if len(batch.labels) < self.batch_size:
                raise DataError(f"{MAX_ATTEMPTS} samples in a row are unreadable, the last is {batch.skipped[-1]}")
            self.consumed += self.batch_size * self.world_size
            yield batch

    def _places(self) -> Iterator[list[tuple[int, int]]]:
        """(epoch, index) for each sample of this process, a list for each batch, without end."""
        start = self.consumed + self.rank * self.batch_size
        orders: dict[int, np.ndarray] = {}
        while True:
            places = [divmod(place, len(self.dataset)) for place in range(start, start + self.batch_size)]
            needed = sorted({epoch for epoch, _ in places})
            orders = {e: orders[e] if e in orders else permutation(len(self.dataset), self.seed, e) for e in needed}
            yield [(epoch, int(orders[epoch][offset])) for epoch, offset in places]
            start += self.batch_size * self.world_size

    def state_dict(self) -> dict[str, Any]:
        """Position and counts, plain values. Batch size and number of processes may differ when it is loaded."""
        return {
            "seed": self.seed,
            "samples": len(self.dataset),
            "labels": self._labels_sha256(),
            "consumed": self.consumed,
            "skips": self.skips.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after :meth:`state_dict`'s position. An iteration that has begun is not affected.

        Raises:
            DataError: the state is of another order: the seed, the number of samples or their labels differ.
        """
        for key, mine in (("samples", len(self.dataset)), ("seed", self.seed)):
            if state[key] != mine:
                raise DataError(f"the saved run's data has {key} = {state[key]}, this data has {mine}")
        labels = self._labels_sha256()
        if state.get("labels", labels) != labels:  # checkpoints of before have none
            raise DataError("the saved run's data has other labels, or the same in another order")
        self.consumed = int(state["consumed"])
        self.skips.load_state_dict(state["skips"])

    def _labels_sha256(self) -> str:
        """Tells data sets apart without reading their pictures."""
        return hashlib.sha256(self.dataset.labels.astype("<i8").tobytes()).hexdigest()
