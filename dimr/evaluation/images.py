"""Batches of images: from a folder, an ``.npz`` as ADM's evaluation suite reads it, or a tensor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..data.errors import DataError, SampleError
from ..utils import require
from .metrics import EvaluationError

if TYPE_CHECKING:
    from ..data.dataset import ImageSource


READERS = 8  # threads; decoding releases the GIL


class Images(Protocol):
    """Images in a fixed order."""

    description: str  # path, for messages
    count: int

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield all images as uint8 ``[B, 3, H, W]`` with ``B`` at most ``size``."""
        ...

    def name(self, index: int) -> str:
        """Return an image's name for messages."""
        ...


class TensorImages:
    """Images in memory, uint8 ``[N, 3, H, W]``."""

    def __init__(self, images: Tensor) -> None:
        if images.dim() != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
            raise EvaluationError(f"images: wanted uint8 [N, 3, H, W], got {images.dtype} {list(images.shape)}")
        self._images = images
        self.count = len(images)
        self.description = "a tensor"

    def batches(self, size: int) -> Iterator[Tensor]:
        yield from self._images.split(size)

    def name(self, index: int) -> str:
        return f"image {index}"


class StoredImages:
    """Pictures of a source, all of one size, or scaled and centre-cropped to ``crop`` as in ADM's data."""

    def __init__(self, source: ImageSource, description: str, crop: int | None = None) -> None:
        self._source = source
        self._crop = crop
        self.count = len(source)
        self.description = description

    def batches(self, size: int) -> Iterator[Tensor]:
        shape = None
        with ThreadPoolExecutor(READERS) as readers:
            for start in range(0, self.count, size):
                numbers = range(start, min(start + size, self.count))
                images = list(readers.map(self._read, numbers))
                shape = shape or images[0].shape
                for number, image in zip(numbers, images, strict=True):
                    if image.shape != shape:
                        raise EvaluationError(
                            f"{self.name(number)} is {image_size(image)}, {self.name(0)} is {image_size(shape)}: "
                            "give a size to crop all of them to (--crop)"
                        )
                yield torch.stack(images)

    def name(self, index: int) -> str:
        return f"{self.description}: {self._source.name(index)}"

    def _read(self, index: int) -> Tensor:
        """Read one image, uint8 ``[3, H, W]``."""
        from ..data.pictures import as_tensor, centre_crop

        try:
            picture = self._source.picture(index)
            return as_tensor(picture) if self._crop is None else centre_crop(picture, self._crop)
        except SampleError as error:
            raise EvaluationError(f"{self.name(index)}: {error.skipped.reason}") from error


def open_images(
    images: str | os.PathLike[str] | Tensor, crop: int | None = None, exif_orientation: bool = True
) -> Images:
    """Open a folder, an ``.npz`` or a tensor. If it does not exist or is empty, that is an :class:`EvaluationError`."""
    opened: Images
    if isinstance(images, Tensor):
        opened = TensorImages(images)
    else:
        opened = StoredImages(_source(images, exif_orientation), str(images), crop)
    if opened.count == 0:
        raise EvaluationError(f"{opened.description}: no images in it")
    return opened


def _source(path: str | os.PathLike[str], exif_orientation: bool) -> ImageSource:
    require("numpy", "evaluate", "reading images")
    from ..data.pictures import Decoding
    from ..data.sources.folder import FolderSource
    from ..data.sources.npz import NpzSource

    decoding = Decoding(exif_orientation)
    try:
        if Path(path).is_dir():
            return FolderSource(path, decoding, labelled=False)
        if Path(path).is_file() and Path(path).suffix.lower() == ".npz":
            return NpzSource(path, decoding=decoding, labelled=False)
    except DataError as error:
        raise EvaluationError(str(error)) from error
    found = "another kind of file" if Path(path).exists() else "nothing"
    raise EvaluationError(f"{path}: wanted a folder of pictures or an .npz file, found {found}")


def image_size(image: Tensor | torch.Size) -> str:
    """Format the width and height of ``[..., H, W]``, such as ``256x256``."""
    height, width = (image.shape if isinstance(image, Tensor) else image)[-2:]
    return f"{width}x{height}"
