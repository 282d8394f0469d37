"""Samples with the classes they are meant to show, from what ``dimr sample`` and other programs write."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.errors import DataError, SampleError
from ..images import SHOWN_CHANNELS
from ..optional import require


@dataclasses.dataclass(frozen=True)
class Samples:
    """Images that are read when they are asked for, so that fifty thousand need not fit into memory.

    Attributes:
        labels: ``[count]`` int64, or None where nothing tells them.
        read: indices to ``[B, C, H, W]`` in [-1, 1] or nearly so, C 1 or 3; called through :meth:`images`.
        name: for messages.
    """

    count: int
    labels: Tensor | None
    read: Callable[[Sequence[int]], Tensor]
    name: str = "samples"

    def __post_init__(self) -> None:
        if self.count == 0:
            raise DataError(f"{self.name}: no images in it")
        if self.labels is not None and (self.labels.shape != (self.count,) or self.labels.min() < 0):
            raise DataError(f"{self.name}: wanted a class of 0 or more for each of {self.count} images")

    def images(self, indices: Sequence[int]) -> Tensor:
        """float32 ``[B, C, H, W]`` in [-1, 1]; DataError where they cannot be read or shown."""
        images = self.read(indices).float()
        if images.dim() != 4 or images.shape[1] not in SHOWN_CHANNELS:
            raise DataError(f"{self.name}: wanted images [N, 1 or 3, H, W], found {list(images.shape)}")
        if not images.isfinite().all():
            raise DataError(f"{self.name}: its images hold values that are no finite numbers")
        return images.clamp(-1, 1)


def from_tensors(images: Tensor, labels: Tensor | None, name: str = "samples") -> Samples:
    """``images [N, C, H, W]`` in [-1, 1] and ``labels [N]``."""
    if images.dim() != 4 or images.is_complex():
        raise DataError(f"{name}: wanted images [N, 1 or 3, H, W], found {images.dtype} {list(images.shape)}")
    return Samples(len(images), None if labels is None else labels.long(), lambda i: images[list(i)], name)


def read_samples(path: str | os.PathLike[str]) -> Samples:
    """From ``.safetensors`` or ``.npz`` (``samples``, or pixels as ADM's suite has them), or a folder of pictures.

    Raises:
        FileNotFoundError: there is nothing.
        DataError: it holds something else, or is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no samples at {path}")
    suffix = path.suffix.lower()
    if path.is_dir():
        return _from_source(path)
    if suffix == ".safetensors":
        return _from_safetensors(path)
    if suffix == ".npz":
        return _from_npz(path)
    raise DataError(f"{path}: wanted a folder, .npz or .safetensors")


def _from_safetensors(path: Path) -> Samples:
    tensors = require("safetensors.torch", "demo", "reading .safetensors")
    try:
        found = tensors.load_file(path)
    except Exception as error:  # safetensors has errors of its own, and passes on others
        raise DataError(f"{path} cannot be read: {error}") from error
    if "samples" not in found:
        raise DataError(f"{path} has no tensor samples, only {', '.join(sorted(found))}")
    return from_tensors(found["samples"], found.get("labels"), str(path))


def _from_npz(path: Path) -> Samples:
    numpy = require("numpy", "demo", "reading .npz")
    from ..data.npz import array_names, read_array

    names = array_names(path)
    if "samples" not in names:
        return _from_source(path)
    arrays = {name: read_array(path, name) for name in ("samples", "labels") if name in names}
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu":
            raise DataError(f"{path}: wanted numbers in {name}, found {array.dtype}")
    samples = torch.from_numpy(numpy.array(arrays["samples"], "float32"))
    labels = torch.from_numpy(numpy.array(arrays["labels"], "int64")) if "labels" in arrays else None
    return from_tensors(samples, labels, str(path))


def _from_source(path: Path) -> Samples:
    require("numpy", "demo", "reading pictures")
    from ..data.folder import FolderSource
    from ..data.npz import NpzSource

    source: Any = FolderSource(path) if path.is_dir() else NpzSource(path)
    labels = None if source.labels is None else torch.as_tensor(source.labels).long()

    def read(indices: Sequence[int]) -> Tensor:
        images = [_read(source, i) for i in indices]
        if len({image.shape for image in images}) > 1:
            raise DataError(f"{path}: its pictures differ in size")
        return torch.stack(images)

    return Samples(len(source), labels, read, str(path))


def _read(source: Any, index: int) -> Tensor:
    from ..data.preprocessing import as_tensor, to_model_range

    try:
        return to_model_range(as_tensor(source.picture(index)))
    except SampleError as error:
        raise DataError(str(error.skipped)) from error
