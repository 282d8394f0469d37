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

from .dataset import Dataset, SampleRandom, permutation, replacement
from .errors import DataError, SampleError, Skipped
from .pictures import to_model_range

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 32  # samples tried in a row for one place in a batch


class SkipLog:
    """A count of unreadable files, up to a limit.

    Attributes:
        limit: number of files that may be unreadable; with 0 the first one is an error.
        files: reasons by name. A file counts once, however often it is met.
        count: number of samples skipped because of them.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.files: dict[str, str] = {}
        self.count = 0

    def record(self, skipped: Iterable[Skipped]) -> None:
        """Count what was skipped, and log each file the first time.

        Raises:
            DataError: more files are unreadable than the limit allows.
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


class Reading(NamedTuple):
    """A sample, or None if it could not be read, and what was skipped."""

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
        """Move to a device: images in [-1, 1] or latents, float32 ``[B, C, S, S]``, and labels ``[B]``.

        Pixels travel as bytes; from pinned memory the copy does not block.
        """
        samples = to_model_range(self.samples.to(device, non_blocking=True))
        return samples, self.labels.to(device, non_blocking=True)


def collate(readings: list[Reading]) -> Batch:
    """Stack the samples that were read; the others are only listed in ``skipped``."""
    kept = [(one.sample, one.label) for one in readings if one.sample is not None]
    samples = torch.stack([sample for sample, _ in kept]) if kept else torch.empty(0)
    labels = torch.tensor([label for _, label in kept], dtype=torch.int64)
    return Batch(samples, labels, tuple(skipped for one in readings for skipped in one.skipped))


class PlainReader(TorchDataset):
    """Reads samples by index without augmentation; leaves unreadable ones out."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Reading:
        try:
            return Reading(self.dataset.load(index), int(self.dataset.labels[index]))
        except SampleError as error:
            return Reading(None, 0, (error.skipped,))


class RandomReader(TorchDataset):
    """Reads augmented samples by (epoch, index); replaces unreadable ones if the data set allows any."""

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
    """Read a batch for each list of the reader's indices, in order. Leaves the global random state alone."""
    keys: Iterable[list[Hashable]] = batches
    return iter(
        DataLoader(
            reader,
            batch_sampler=keys,  # type: ignore[arg-type]
            num_workers=num_workers,
            collate_fn=collate,
            pin_memory=pin_memory,
            generator=torch.Generator().manual_seed(0),  # by default a seed is drawn from the global one
            worker_init_fn=_leave_process_group,
        )
    )


def _leave_process_group(worker: int) -> None:
    """Put the worker in a process group of its own.

    Ctrl-C, or a scheduler's signal to the whole group, then reaches the parent alone, which saves its state before it
    ends its workers.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


class TrainingLoader:
    """Endless training batches for one of ``world_size`` processes.

    The epochs, each in its own order, form one sequence. A training step takes the next ``world_size * batch_size``
    places of it, and process ``rank`` gets the ``rank``-th ``batch_size`` of these. So every epoch has each sample
    once, all batches are full, and a batch may span two epochs. However a global batch is divided over processes or
    accumulation steps, its samples and their augmentation are the same.

    An unreadable sample is counted and replaced by another, always the same one for that place in the sequence.

    Attributes:
        consumed: number of places in the batches handed out so far, over all processes.
        skips: files that this process could not read; the limit is the data set's ``max_skipped``.
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
        """Continue after the last batch handed out; what workers have read ahead does not count.

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
        """Yield a list of (epoch, index) for each batch of this process, without end."""
        start = self.consumed + self.rank * self.batch_size
        orders: dict[int, np.ndarray] = {}
        while True:
            places = [divmod(place, len(self.dataset)) for place in range(start, start + self.batch_size)]
            needed = sorted({epoch for epoch, _ in places})
            orders = {e: orders[e] if e in orders else permutation(len(self.dataset), self.seed, e) for e in needed}
            yield [(epoch, int(orders[epoch][offset])) for epoch, offset in places]
            start += self.batch_size * self.world_size

    def state_dict(self) -> dict[str, Any]:
        """Return the position and counts as plain values. It may be loaded with another batch size or world size."""
        return {
            "seed": self.seed,
            "samples": len(self.dataset),
            "kind": self.dataset.kind,
            "labels": self._labels_sha256(),
            "consumed": self.consumed,
            "skips": self.skips.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the position in ``state``, with this loader's seed. A running iteration is not affected.

        Raises:
            DataError: the number of samples, their kind or their labels differ.
        """
        if state["samples"] != len(self.dataset):
            raise DataError(f"the saved run's data has {state['samples']} samples, this data has {len(self.dataset)}")
        if state.get("kind", self.dataset.kind) != self.dataset.kind:  # older checkpoints have none
            raise DataError(f"the saved run's data is {state['kind']}, this data is {self.dataset.kind}")
        labels = self._labels_sha256()
        if state.get("labels", labels) != labels:  # older checkpoints have none
            raise DataError("the saved run's data has other labels, or the same in another order")
        self.consumed = int(state["consumed"])
        self.skips.load_state_dict(state["skips"])

    def _labels_sha256(self) -> str:
        """Identify the data set without reading its pictures."""
        return hashlib.sha256(self.dataset.labels.astype("<i8").tobytes()).hexdigest()
