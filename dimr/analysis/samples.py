"""Samples with the classes they are meant to show, from what ``dimr sample`` and other programs write."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.errors import DataError, SampleError
from ..optional import require


class Samples(NamedTuple):
    """``images [N, C, H, W]`` float32 in [-1, 1], C 1 or 3; ``labels [N]`` int64, or None where nothing tells them."""

    images: Tensor
    labels: Tensor | None


def read_samples(path: str | os.PathLike[str]) -> Samples:
    """From ``.safetensors`` or ``.npz`` (``samples``, or pixels as ADM's suite has them), or a folder of pictures.

    Raises:
        FileNotFoundError: there is nothing.
        DataError: no such file, or not images that can be shown.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no samples at {path}")
    read = {".safetensors": _from_safetensors, ".npz": _from_npz}.get(path.suffix.lower())
    if path.is_file() and read is None:
        raise DataError(f"{path}: wanted a folder, .npz or .safetensors")
    images, labels = _from_source(path) if path.is_dir() else read(path)  # type: ignore[misc]
    if images.dim() != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise DataError(f"{path}: wanted images [N, 1 or 3, H, W], found {list(images.shape)}")
    if not images.isfinite().all():
        raise DataError(f"{path}: its images hold values that are no finite numbers")
    if labels is not None and (labels.shape != images.shape[:1] or labels.min() < 0):
        raise DataError(f"{path}: wanted a class of 0 or more for each of {len(images)} images")
    return Samples(images.float().clamp(-1, 1), None if labels is None else labels.long())


def _from_safetensors(path: Path) -> tuple[Tensor, Tensor | None]:
    tensors = require("safetensors.torch", "demo", "reading .safetensors")
    try:
        found = tensors.load_file(path)
    except Exception as error:  # safetensors has errors of its own, and passes on others
        raise DataError(f"{path} cannot be read: {error}") from error
    if "samples" not in found:
        raise DataError(f"{path} has no tensor samples, only {', '.join(sorted(found))}")
    return found["samples"], found.get("labels")


def _from_npz(path: Path) -> tuple[Tensor, Tensor | None]:
    numpy = require("numpy", "demo", "reading .npz")
    try:
        with numpy.load(path, allow_pickle=False) as arrays:
            if "samples" in arrays:
                labels = torch.from_numpy(arrays["labels"]) if "labels" in arrays else None
                return torch.from_numpy(arrays["samples"]), labels
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return _from_source(path)


def _from_source(path: Path) -> tuple[Tensor, Tensor | None]:
    require("numpy", "demo", "reading pictures")
    from ..data.folder import FolderSource
    from ..data.npz import NpzSource

    source: Any = FolderSource(path) if path.is_dir() else NpzSource(path)
    if len(source) == 0:
        raise DataError(f"{path}: no pictures in it")
    images = [_read(source, i) for i in range(len(source))]
    if len({image.shape for image in images}) > 1:
        raise DataError(f"{path}: its pictures differ in size")
    return torch.stack(images), None if source.labels is None else torch.as_tensor(source.labels)


def _read(source: Any, index: int) -> Tensor:
    try:
        picture = source.picture(index)
    except SampleError as error:
        raise DataError(str(error.skipped)) from error
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, 3).permute(2, 0, 1).float() / 127.5 - 1
