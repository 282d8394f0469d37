"""Latents that were computed beforehand, see :mod:`dimr.data.encoding`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..optional import require
from .dataset import Dataset, count_classes
from .errors import DataError, SampleError, Skipped
from .latent_index import LatentIndex, ShardEntry
from .randomness import SampleRandom

DTYPES = ("F32", "F16")


class LatentDataset(Dataset):
    """The folder that ``dimr encode`` wrote. A sample is drawn from the distribution that the autoencoder gave for the
    picture, or for its mirror image, and scaled as the autoencoder's configuration says.
    """

    def __init__(
        self, folder: str | os.PathLike[str], image_size: int | None = None, flip: bool = True, max_skipped: int = 0
    ) -> None:
        self.folder = Path(folder)
        index = LatentIndex.read(self.folder)
        _check_usable(index, image_size, flip)
        self.flip = flip
        self.max_skipped = max_skipped
        self.sample_shape = index.latent_shape
        self._flipped = index.settings["flipped"]
        self.class_names = None if index.class_names is None else tuple(index.class_names)
        self.scale = index.scale
        entries = self._present([entry for entry in index.shards.values() if entry.samples])
        self._files = [self.folder / entry.file for entry in entries]
        counts = [entry.samples for entry in entries]
        self._shard = np.repeat(np.arange(len(entries)), counts)
        self._row = np.concatenate([np.arange(0), *map(np.arange, counts)])
        self._open: dict[int, Any] = {}
        self.labels = self._read_labels()
        self.num_classes = max(index.num_classes, count_classes(self.labels, self.class_names))

    def _present(self, entries: list[ShardEntry]) -> list[ShardEntry]:
        """Those whose file is there and whole; others are errors where nothing may be skipped."""
        present, missing = [], []
        for entry in entries:
            path = self.folder / entry.file
            size = path.stat().st_size if path.is_file() else None
            if size == entry.bytes:
                present.append(entry)
            else:
                found = "is missing" if size is None else f"has {size} bytes, not {entry.bytes}"
                missing.append(Skipped(str(path), f"{found}; run dimr encode again"))
        self.missing = tuple(missing)
        if missing and self.max_skipped == 0:
            raise DataError(str(missing[0]))
        return present

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # open files stay in this process

    def _read_labels(self) -> np.ndarray:
        """Of all files, whose tensors must have the shapes that the index gives them."""
        counts = np.bincount(self._shard, minlength=len(self._files)).tolist()
        try:
            labels = [self._labels_of(i, count) for i, count in enumerate(counts)]
        except SampleError as error:
            raise DataError(str(error.skipped)) from error
        return np.concatenate([np.empty(0, np.int64), *labels])

    def _labels_of(self, shard: int, count: int) -> np.ndarray:
        C, h, w = self.sample_shape
        wanted = [[count, 1 + self._flipped, channels, h, w] for channels in (C, 2 * C)]
        try:
            file = self._handle(shard)
            labels, moments = file.get_tensor("labels").numpy(), file.get_slice("moments")
            found, dtype = moments.get_shape(), moments.get_dtype()
        except SampleError:
            raise
        except Exception as error:  # safetensors has errors of its own, which need not be installed
            raise SampleError(str(self._files[shard]), str(error)) from error
        if list(found) not in wanted or dtype not in DTYPES or labels.shape != (count,) or labels.dtype != np.int64:
            raise SampleError(
                str(self._files[shard]),
                f"wanted {count} latents and labels as in the index, found moments {dtype} {list(found)} "
                f"and labels {labels.dtype} {list(labels.shape)}",
            )
        return labels

    def _handle(self, shard: int) -> Any:
        if shard not in self._open:
            path = self._files[shard]
            safetensors = require("safetensors", "train", "reading latents")
            try:
                self._open[shard] = safetensors.safe_open(path, "pt")
            except (OSError, safetensors.SafetensorError) as error:
                raise SampleError(str(path), str(error)) from error
        return self._open[shard]

    def load(self, index: int, random: SampleRandom | None = None) -> Tensor:
        """float32 ``[C, h, w]``; without ``random`` the mean, not mirrored."""
        mirrored = random is not None and self.flip and random.coin()
        stored = self._handle(int(self._shard[index])).get_slice("moments")
        moments = stored[int(self._row[index]), int(mirrored)].float()  # [C or 2C, h, w]
        channels = self.sample_shape[0]
        latent = moments[:channels]
        if random is not None and len(moments) > channels:
            latent = latent + torch.exp(0.5 * moments[channels:]) * random.normal(latent.shape)
        return self.scale.apply(latent)


def _check_usable(index: LatentIndex, image_size: int | None, flip: bool) -> None:
    folder = index.folder
    if not index.complete:
        raise DataError(f"{folder} holds {len(index.shards)} of {index.num_shards} shards: finish dimr encode first")
    if image_size not in (None, index.settings["image_size"]):
        raise DataError(f"{folder} holds latents of {index.settings['image_size']} pixels, not of {image_size}")
    if flip and not index.settings["flipped"]:
        raise DataError(f"{folder} holds no mirrored latents: set flip = false")
