"""Samples by number."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from .errors import DataError, Skipped
from .preprocessing import centre_crop
from .randomness import SampleRandom


class Dataset(abc.ABC):
    """Labelled samples ``0 .. len - 1``. Where the data has no classes, all labels are 0.

    Attributes:
        labels: int64 ``[N]``.
        class_names: one for each class, where known.
        num_classes: classes are ``0 .. num_classes - 1``.
        sample_shape: ``(C, S, S)``.
        missing: what was found unreadable while the data set was opened.
        max_skipped: how many files may be unreadable before reading ends in an error.
    """

    labels: np.ndarray
    class_names: tuple[str, ...] | None
    num_classes: int
    sample_shape: tuple[int, int, int]
    missing: tuple[Skipped, ...] = ()
    max_skipped: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    @abc.abstractmethod
    def load(self, index: int, random: SampleRandom | None = None) -> Tensor:
        """A sample, ``sample_shape``: pixels as uint8, latents as float32. Without ``random``, unchanged by chance.

        Raises:
            SampleError: it cannot be read.
        """


class ImageSource(abc.ABC):
    """Where pictures come from; kept small in memory and in a pickle, because worker processes get copies.

    Attributes:
        labels: int64 ``[N]``, or None where there are no classes.
        class_names: one for each class, where known.
        missing: what was found unreadable while the source was opened.
    """

    labels: np.ndarray | None
    class_names: tuple[str, ...] | None = None
    missing: tuple[Skipped, ...] = ()

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def name(self, index: int) -> str:
        """What messages call a picture. The same wherever the data lies."""

    @abc.abstractmethod
    def picture(self, index: int) -> Any:
        """RGB ``PIL.Image``.

        Raises:
            SampleError: it cannot be read.
        """


class ImageDataset(Dataset):
    """Pictures of a source, cropped and scaled to ``image_size``, and mirrored by chance where ``flip`` is set."""

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
    """The names', or as many as the labels need.

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
