"""Batches of samples, read by worker processes, with word of what could not be read."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Hashable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from .dataset import Dataset
from .errors import SampleError, Skipped
from .preprocessing import to_model_range
from .randomness import SampleRandom, replacement

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
