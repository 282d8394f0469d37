"""Data sets: labelled samples by index, and the random numbers that belong to each sample."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import DataError, Skipped
from .pictures import Decoding, centre_crop


class Dataset(abc.ABC):
    """Labelled samples ``0 .. len - 1``. If the data has no classes, all labels are 0.

    Attributes:
        labels: int64 ``[N]``.
        class_names: one for each class, if known.
        num_classes: classes are ``0 .. num_classes - 1``.
        sample_shape: ``(C, S, S)``.
        kind: what a sample is: pictures, or latents of one autoencoder.
        missing: files found unreadable while the data set was opened.
        max_skipped: number of files that may be unreadable before reading ends in an error.
    """

    labels: np.ndarray
    class_names: tuple[str, ...] | None
    num_classes: int
    sample_shape: tuple[int, int, int]
    kind: str = "pictures"
    missing: tuple[Skipped, ...] = ()
    max_skipped: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    @abc.abstractmethod
    def load(self, index: int, random: SampleRandom | None = None) -> Tensor:
        """Read a sample of ``sample_shape``: pixels as uint8, latents as float32. ``random`` augments it.

        Raises:
            SampleError: it cannot be read.
        """


class ImageSource(abc.ABC):
    """Labelled pictures by index. Worker processes get copies, so a source is small in memory and in a pickle.

    Attributes:
        labels: int64 ``[N]``, or None if there are no classes.
        class_names: one for each class, if known.
        missing: files found unreadable while the source was opened.
        decoding: options of decoding; None for the default ones.
    """

    labels: np.ndarray | None
    class_names: tuple[str, ...] | None = None
    missing: tuple[Skipped, ...] = ()
    decoding: Decoding | None = None

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """Name a picture for messages, independently of where the data is stored."""

    @abc.abstractmethod
    def stamp(self, index: int) -> str:
        """Return the :func:`file_stamp` of the file that holds a picture."""

    @abc.abstractmethod
    def picture(self, index: int) -> Any:
        """Read an RGB ``PIL.Image``.

        Raises:
            SampleError: it cannot be read.
        """


def file_stamp(path: Path) -> str:
    """Return size and time of change of a file, by which it is noticed that it was replaced."""
    try:
        found = path.stat()
    except OSError:
        return "missing"
    return f"{found.st_size} bytes, {found.st_mtime_ns} ns"


class ConcatenatedSource(ImageSource):
    """Several sources of the same classes, one after another.

    Raises:
        DataError: only some have labels, or their class names differ.
    """

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self._sources = list(sources)
        self._ends = np.cumsum([len(source) for source in sources])
        self.missing = tuple(one for source in sources for one in source.missing)
        self.class_names, self.decoding = sources[0].class_names, sources[0].decoding
        if any(source.class_names != self.class_names for source in sources):
            raise DataError("its files have different class names")
        labels = [source.labels for source in sources if source.labels is not None]
        if labels and len(labels) < len(sources):
            raise DataError(f"only {len(labels)} of its {len(sources)} files have labels")
        self.labels = np.concatenate(labels) if labels else None

    def _find(self, index: int) -> tuple[ImageSource, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        source = self._sources[number]
        return source, index - int(self._ends[number]) + len(source)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, index: int) -> str:
        source, place = self._find(index)
        return source.name(place)

    def stamp(self, index: int) -> str:
        source, place = self._find(index)
        return source.stamp(place)

    def picture(self, index: int) -> Any:
        source, place = self._find(index)
        return source.picture(place)


class ImageDataset(Dataset):
    """Pictures of a source, cropped and scaled to ``image_size``.

    ``flip`` flips each sample horizontally with probability 1/2.
    """

    def __init__(self, source: ImageSource, image_size: int, flip: bool = True, max_skipped: int = 0) -> None:
        self.source = source
        self.flip = flip
        self.max_skipped = max_skipped
        self.missing = source.missing
        self.sample_shape = (3, image_size, image_size)
        self.class_names = source.class_names
        self.labels = np.zeros(len(source), np.int64) if source.labels is None else source.labels
        self.num_classes = count_classes(self.labels, self.class_names)

    def load(self, index: int, random: SampleRandom | None = None) -> Tensor:
        pixels = centre_crop(self.source.picture(index), self.sample_shape[-1], self.source.name(index))
        return pixels.flip(-1) if random is not None and self.flip and random.coin() else pixels


def count_classes(labels: np.ndarray, class_names: Sequence[str] | None) -> int:
    """Return the number of class names or, without names, the highest label plus one.

    Raises:
        DataError: there are no samples, or a label is no class.
    """
    if len(labels) == 0:
        raise DataError("there are no samples in it")
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise DataError(f"labels must be 0 or more, found {low}")
    if class_names is None:
        return high + 1
    if high >= len(class_names):
        raise DataError(f"there are {len(class_names)} class names, found label {high}")
    return len(class_names)


# Random numbers that depend on their place alone: on (seed, epoch) for an order, on (seed, epoch, index) for a sample.
# Philox computes any part of its stream from a key and a counter (Salmon et al., 2011), and NumPy keeps its raw output
# the same from version to version.

ORDER, SAMPLE, REPLACEMENT = range(3)  # each purpose has its own part of the stream


def _stream(seed: int, epoch: int, index: int, purpose: int) -> np.random.Philox:
    return np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=np.array([0, index, 0, purpose], np.uint64))


def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """Draw the order of an epoch: int64 ``[count]``."""
    return np.argsort(_stream(seed, epoch, 0, ORDER).random_raw(count), kind="stable")


def replacement(count: int, seed: int, epoch: int, index: int, attempt: int) -> int:
    """Choose one of ``count`` samples to read in place of an unreadable one; ``attempt`` counts from 0."""
    return int(_stream(seed, epoch, index, REPLACEMENT).random_raw(attempt + 1)[-1] % np.uint64(count))


class SampleRandom:
    """The random numbers of one sample in one epoch."""

    def __init__(self, seed: int, epoch: int, index: int) -> None:
        self._bits = _stream(seed, epoch, index, SAMPLE)

    def coin(self) -> bool:
        """Return True with probability 1/2."""
        return bool(self._bits.random_raw() & 1)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Draw from the standard normal distribution, in float32."""
        generator = torch.Generator().manual_seed(self._bits.random_raw() >> 1)
        return torch.randn(tuple(shape), generator=generator)
