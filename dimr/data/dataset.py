"""Samples by number."""

from __future__ import annotations

import abc
import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..utils import first_line, require

# What can be wrong with data.


class DataError(Exception):
    """Data that cannot be used, said in one line that names the file."""


class Skipped(NamedTuple):
    """Something that could not be read. ``name`` is a file, or a place in one."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class SampleError(Exception):
    """One sample, or the file that holds it, cannot be read; the others may be fine."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both, so that the error can be pickled
        self.skipped = Skipped(name, reason)


# A picture file to the pixels a model is trained on.


PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm")
LONGEST = 2**16  # pixels of a picture's longer side when the shorter one has been scaled
# What Pillow is seen to raise on damaged files.
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error)


def require_pillow() -> Any:
    return require("PIL.Image", "train", "reading pictures")


def decode_picture(file: bytes | Path, name: str) -> Any:
    """A whole, decoded RGB ``PIL.Image``.

    Raises:
        SampleError: the file is missing or damaged; ``name`` is what the error calls it.
    """
    Image = require_pillow()
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as picture:
            return picture.convert("RGB")
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise SampleError(name, _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = first_line(error)
    return "not a picture that Pillow can read" if text.startswith("cannot identify") else text


def as_tensor(picture: Any) -> Tensor:
    """Of an RGB picture: uint8 ``[3, H, W]``."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def centre_crop(picture: Any, size: int, name: str = "picture") -> Tensor:
    """The largest square in the middle, scaled to ``size``: uint8 ``[3, size, size]``.

    As ADM does it (Dhariwal and Nichol, 2021), and after it U-ViT and DiMR: the shorter side is halved by averaging
    while it is at least twice too long, then made ``size`` bicubically, and the middle is cut out.

    Raises:
        SampleError: so long a picture that this would take gigabytes for what is cut off.
    """
    Image = require_pillow()
    shorter, longer = sorted(picture.size)
    if longer * size > LONGEST * shorter:
        raise SampleError(name, f"{picture.width}x{picture.height} pixels are too long a picture for a square")
    while min(picture.size) >= 2 * size:
        picture = picture.resize(tuple(side // 2 for side in picture.size), Image.Resampling.BOX)
    scale = size / min(picture.size)
    if scale != 1:
        picture = picture.resize(tuple(round(side * scale) for side in picture.size), Image.Resampling.BICUBIC)
    top, left = (picture.height - size) // 2, (picture.width - size) // 2
    return as_tensor(picture)[:, top : top + size, left : left + size].contiguous()


def to_model_range(pixels: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]; other tensors, which are latents, as they are."""
    return pixels.float() / 127.5 - 1 if pixels.dtype == torch.uint8 else pixels


# Random numbers that depend on their place alone: on (seed, epoch) for an order, on (seed, epoch, index) for a sample.
#
# They come from Philox, a generator that computes any part of its stream from a key and a counter (Salmon et al.,
# 2011); numpy keeps its raw output the same from version to version.


# Each purpose has a part of the stream for itself.
ORDER, SAMPLE, REPLACEMENT = range(3)


def _stream(seed: int, epoch: int, index: int, purpose: int) -> np.random.Philox:
    return np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=np.array([0, index, 0, purpose], np.uint64))


def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: int64 ``[count]``."""
    return np.argsort(_stream(seed, epoch, 0, ORDER).random_raw(count), kind="stable")


def replacement(count: int, seed: int, epoch: int, index: int, attempt: int) -> int:
    """Which of ``count`` samples to try, for the ``attempt``-th time (from 0), in place of one that is unreadable."""
    return int(_stream(seed, epoch, index, REPLACEMENT).random_raw(attempt + 1)[-1] % np.uint64(count))


class SampleRandom:
    """The random numbers of one sample in one epoch."""

    def __init__(self, seed: int, epoch: int, index: int) -> None:
        self._bits = _stream(seed, epoch, index, SAMPLE)

    def coin(self) -> bool:
        return bool(self._bits.random_raw() & 1)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """float32, standard normal."""
        generator = torch.Generator().manual_seed(self._bits.random_raw() >> 1)
        return torch.randn(tuple(shape), generator=generator)


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
