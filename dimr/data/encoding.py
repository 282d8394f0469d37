"""Encoding pictures to latents on disk, resumably.

Encoding gives the same in every epoch of training, so it is done once. The files keep the mean and log variance of
each latent's distribution, for the picture and for its mirror image, as U-ViT does (Bao et al., 2023), so that training
still draws a new latent each time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..sampling.autoencoder import downsampling, encode_moments, latent_scale
from ..utils import replacing, require, weights_sha256
from .dataset import ImageDataset
from .errors import DataError, Skipped
from .latents import LatentIndex, ShardEntry
from .loader import Batch, PlainReader, SkipLog, read_batches
from .pictures import Decoding, to_model_range
from .spec import LATENT_INDEX

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclasses.dataclass(frozen=True)
class EncodingSettings:
    """Encoding options. A variational latent of 4 x 32 x 32 and its mirror image take 64 KiB in float32."""

    shard_size: int = 2048
    dtype: str = "float32"
    flipped: bool = True

    def __post_init__(self) -> None:
        if self.shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, got {self.shard_size}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")


class LatentWriter:
    """Writes latents to a folder, a shard at a time; a shard is written whole or not at all.

    Args:
        new: the index of an empty folder.
        count: number of samples.
        stamp: gives the :func:`~dimr.data.dataset.file_stamp` of a sample.
    """

    def __init__(self, new: LatentIndex, shard_size: int, count: int, stamp: Callable[[int], str]) -> None:
        self._save = require("safetensors.torch", "train", "writing latents").save
        self._shard_size, self._count = shard_size, count
        # Taken before any sample is read: one that is replaced meanwhile is noticed by the next run.
        self._stamps = {number: self._hash(stamp, number) for number in range(new.num_shards)}
        self.index = _open_index(new, self._stamps)

    def _hash(self, stamp: Callable[[int], str], shard: int) -> str:
        digest = hashlib.sha256()
        for i in self.samples_of(shard):
            digest.update(stamp(i).encode() + b"\n")
        return digest.hexdigest()

    def remaining(self) -> list[int]:
        """List the numbers of the shards that are still to be made."""
        return [number for number in range(self.index.num_shards) if number not in self.index.shards]

    def samples_of(self, shard: int) -> range:
        first = shard * self._shard_size
        return range(first, min(first + self._shard_size, self._count))

    def _write(self, shard: int, moments: Tensor, labels: Tensor, skipped: list[list[str]]) -> None:
        """Write a shard: ``moments [N, 1 or 2, M, h, w]`` and ``labels [N]``."""
        payload = self._save({"moments": moments, "labels": labels})
        path = self.index.folder / f"latents-{shard:05}.safetensors"
        checksum = hashlib.sha256(payload).hexdigest()
        first = self.samples_of(shard).start
        finished = len(self.index.shards)
        try:
            with replacing(path) as temporary:
                temporary.write_bytes(payload)
            self.index.shards[shard] = ShardEntry(
                path.name, first, len(labels), len(payload), checksum, skipped, self._stamps[shard]
            )
            self.index.write()
        except OSError as error:
            raise DataError(
                f"cannot write to {path.parent}: {error.strerror}; {finished} of {self.index.num_shards} shards "
                "are finished and kept, run the same again to go on"
            ) from error


class Encoder(LatentWriter):
    """Encodes the pictures of a data set.

    If the folder holds some of the shards already, only the others are made, and those whose pictures have changed.

    Raises:
        DataError: the folder's latents were made with other settings, or the image size does not fit the autoencoder.
    """

    def __init__(self, dataset: ImageDataset, autoencoder: Any, folder: Path, settings: EncodingSettings) -> None:
        self.dataset = dataset
        self.autoencoder = autoencoder
        self.settings = settings
        new = _new_index(dataset, autoencoder, folder, settings)
        super().__init__(new, settings.shard_size, len(dataset), dataset.source.stamp)
        self.skips = SkipLog(dataset.max_skipped)
        self.skips.record(dataset.missing)
        for entry in self.index.shards.values():
            self.skips.record(Skipped(*one) for one in entry.skipped)

    def run(self, batch_size: int = 16, num_workers: int = 0) -> Iterator[int]:
        """Make the remaining shards; yield the number of samples of each batch after it is encoded.

        Raises:
            DataError: too many files are unreadable, a latent is not finite, or a file cannot be written. Finished
                shards are kept.
        """
        shards = self.remaining()
        batches = [part for shard in shards for part in parts(self.samples_of(shard), batch_size)]
        read = read_batches(PlainReader(self.dataset), batches, num_workers)
        for shard in shards:
            done: list[tuple[Tensor, Batch]] = []
            for part in parts(self.samples_of(shard), batch_size):
                batch = next(read)
                self.skips.record(batch.skipped)
                done.append((self._encode(batch), batch))
                yield len(part)
            filled = [moments for moments, batch in done if len(batch.labels)]
            self._write(
                shard,
                torch.cat(filled) if filled else torch.empty(0),
                torch.cat([batch.labels for _, batch in done]),
                [[one.name, one.reason] for _, batch in done for one in batch.skipped],
            )

    def _encode(self, batch: Batch) -> Tensor:
        """Encode a batch: ``[B, 1 or 2, M, h, w]``, plain and flipped; M as from :func:`encode_moments`."""
        if len(batch.labels) == 0:
            return torch.empty(0)
        images = to_model_range(batch.samples.to(self.autoencoder.device))
        views = [images, images.flip(-1)] if self.settings.flipped else [images]
        dtype = DTYPES[self.settings.dtype]
        moments = torch.stack([encode_moments(self.autoencoder, view) for view in views], dim=1).to(dtype)
        if not moments.isfinite().all():
            raise DataError(f"the autoencoder gives latents that are not finite in {self.settings.dtype}")
        return moments.cpu()


def parts(samples: range, batch_size: int) -> list[list[int]]:
    """Cut the numbers of samples into batches."""
    return [list(samples[i : i + batch_size]) for i in range(0, len(samples), batch_size)]


def _new_index(dataset: ImageDataset, autoencoder: Any, folder: Path, settings: EncodingSettings) -> LatentIndex:
    size, factor = dataset.sample_shape[-1], downsampling(autoencoder)
    if size % factor:
        raise DataError(f"image_size must be a multiple of {factor} for this autoencoder, got {size}")
    described = {
        "kind": type(autoencoder).__name__,
        "name": Path(str(autoencoder.config.get("_name_or_path", ""))).name,
        "weights_sha256": weights_sha256(autoencoder),
        "scale": latent_scale(autoencoder)._asdict(),
    }
    source = {"samples": len(dataset), "sha256": _fingerprint(dataset)}
    values = {
        **dataclasses.asdict(settings),
        "image_size": size,
        "source": source,
        "autoencoder": described,
        "decoding": dataclasses.asdict(dataset.source.decoding or Decoding()),
    }
    latent_shape = (autoencoder.config.latent_channels, size // factor, size // factor)
    names = None if dataset.class_names is None else list(dataset.class_names)
    shards = -(-len(dataset) // settings.shard_size)
    return LatentIndex(folder, values, dataset.num_classes, names, latent_shape, shards)


def _fingerprint(dataset: ImageDataset) -> str:
    """Hash labels and names, not the pictures, which would have to be read."""
    digest = hashlib.sha256(dataset.labels.astype("<i8").tobytes())
    for i in range(len(dataset)):
        digest.update(dataset.source.name(i).encode() + b"\n")
    return digest.hexdigest()


def _open_index(new: LatentIndex, stamps: Mapping[int, str]) -> LatentIndex:
    """Return ``new``, or the index in its folder with the finished shards."""
    folder = new.folder
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".*.partial*"):
        leftover.unlink()
    if not (folder / LATENT_INDEX).exists():
        new.write()
        return new
    found = LatentIndex.read(folder)
    found.check_same(new)
    for file, reason in found.drop_stale(stamps).items():
        logger.warning("%s %s and is made again", folder / file, reason)
    return found
