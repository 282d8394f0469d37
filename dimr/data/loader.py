"""Training batches: the same for the same seed, whatever the number of workers and processes, and resumable."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from collections.abc import Hashable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from .dataset import DataError, Dataset, SampleError, SampleRandom, Skipped, permutation, replacement, to_model_range

# What could not be read, counted, up to a limit.


logger = logging.getLogger(__name__)


class SkipLog:
    """Attributes:
    limit: how many files may be unreadable; 0 makes the first one an error.
    files: reasons by name. A file counts once, however often it is met.
    count: how many samples were skipped for them.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.files: dict[str, str] = {}
        self.count = 0

    def record(self, skipped: Iterable[Skipped]) -> None:
        """Each file is logged when it is met first.

        Raises:
            DataError: there are more unreadable files than the limit.
        """
        for one in skipped:
            self.count += 1
            if one.name in self.files:
                continue
            self.files[one.name] = one.reason
            if self.limit == 0:
                raise DataError(str(one))
            if len(self.files) > self.limit:
                raise DataError(f"more than max_skipped = {self.limit} files are unreadable, the last is {one}")
            logger.warning("skipped (%d of at most %d) %s", len(self.files), self.limit, one)

    def state_dict(self) -> dict[str, Any]:
        return {"files": dict(self.files), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.files = dict(state["files"])
        self.count = int(state["count"])


# Batches of samples, read by worker processes, with word of what could not be read.


MAX_ATTEMPTS = 32


class Reading(NamedTuple):
    """A sample, or None where it could not be read, and what was skipped for it."""

    sample: Tensor | None
    label: int
    skipped: tuple[Skipped, ...] = ()


@dataclasses.dataclass
class Batch:
    """``samples [B, C, S, S]``, uint8 pixels or float32 latents, and ``labels [B]`` int64."""

    samples: Tensor
    labels: Tensor
    skipped: tuple[Skipped, ...] = ()

    def pin_memory(self) -> Batch:
        return Batch(self.samples.pin_memory(), self.labels.pin_memory(), self.skipped)

    def to(self, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """What a model is trained on: images in [-1, 1] or latents, float32 ``[B, C, S, S]``, and labels ``[B]``.

        Pixels travel to the device as bytes; from pinned memory nothing waits.
        """
        samples = to_model_range(self.samples.to(device, non_blocking=True))
        return samples, self.labels.to(device, non_blocking=True)


def collate(readings: list[Reading]) -> Batch:
    """The samples that were read; others are among ``skipped`` only."""
    kept = [(one.sample, one.label) for one in readings if one.sample is not None]
    samples = torch.stack([sample for sample, _ in kept]) if kept else torch.empty(0)
    labels = torch.tensor([label for _, label in kept], dtype=torch.int64)
    return Batch(samples, labels, tuple(skipped for one in readings for skipped in one.skipped))


class PlainReader(TorchDataset):
    """Samples by index, unchanged by chance; an unreadable one is left out."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Reading:
        try:
            return Reading(self.dataset.load(index), int(self.dataset.labels[index]))
        except SampleError as error:
            return Reading(None, 0, (error.skipped,))


class RandomReader(TorchDataset):
    """Samples by (epoch, index), as chance has it there; an unreadable one is replaced where the data set allows it."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.attempts = MAX_ATTEMPTS if dataset.max_skipped else 1

    def __getitem__(self, place: tuple[int, int]) -> Reading:
        epoch, index = place
        skipped: list[Skipped] = []
        chosen = index
        for attempt in range(self.attempts):
            try:
                sample = self.dataset.load(chosen, SampleRandom(self.seed, epoch, index))
                return Reading(sample, int(self.dataset.labels[chosen]), tuple(skipped))
            except SampleError as error:
                skipped.append(error.skipped)
                chosen = replacement(len(self.dataset), self.seed, epoch, index, attempt)
        return Reading(None, 0, tuple(skipped))


def read_batches(
    reader: TorchDataset, batches: Iterable[list[Any]], num_workers: int = 0, pin_memory: bool = False
) -> Iterator[Batch]:
    """A batch for each list of what ``reader`` is indexed with, in order. Global random state is left alone."""
    keys: Iterable[list[Hashable]] = batches
    return iter(
        DataLoader(
            reader,
            batch_sampler=keys,  # type: ignore[arg-type]
            num_workers=num_workers,
            collate_fn=collate,
            pin_memory=pin_memory,
            generator=torch.Generator().manual_seed(0),  # else torch's own would give a seed away
            worker_init_fn=_leave_process_group,
        )
    )


def _leave_process_group(worker: int) -> None:
    """Ctrl-C, or a scheduler's signal to the whole group, then reaches the parent only: it ends its workers itself,
    after what it has to save."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


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
