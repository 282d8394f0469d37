"""Folders of latents that ``dimr encode`` wrote: the index of a folder, and the data set to train on."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..sampling.autoencoder import LatentScale
from ..utils import file_sha256, read_json, require, write_json
from .dataset import Dataset, SampleRandom, count_classes
from .errors import DataError, SampleError, Skipped
from .spec import LATENT_INDEX

FORMAT = "dimr-latents-1"
DTYPES = ("F32", "F16")  # as safetensors calls them


@dataclasses.dataclass(frozen=True)
class ShardEntry:
    """A finished file: the source's samples from number ``first`` on, without the ``skipped``.

    Attributes:
        skipped: pairs of name and reason.
        stamp: hash of the size and time of change of the samples' files; empty in folders of older versions.
    """

    file: str
    first: int
    samples: int
    bytes: int
    sha256: str
    skipped: list[list[str]]
    stamp: str = ""


@dataclasses.dataclass
class LatentIndex:
    """The index of a folder of latents: what was encoded and how, and which shards are finished.

    Attributes:
        settings: everything that decides the files' content; a later run must have the same.
        num_classes, class_names: those of the source.
        latent_shape: ``(C, h, w)``.
        shards: finished ones by number, of ``num_shards``.
    """

    folder: Path
    settings: dict[str, Any]
    num_classes: int
    class_names: list[str] | None
    latent_shape: tuple[int, int, int]
    num_shards: int
    shards: dict[int, ShardEntry] = dataclasses.field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return len(self.shards) == self.num_shards

    def write(self) -> None:
        shards = [{"number": number, **dataclasses.asdict(entry)} for number, entry in sorted(self.shards.items())]
        values = {
            "format": FORMAT,
            "complete": self.complete,
            "samples": sum(entry.samples for entry in self.shards.values()),
            "skipped": sum(len(entry.skipped) for entry in self.shards.values()),
            "settings": self.settings,
            "num_classes": self.num_classes,
            "class_names": self.class_names,
            "latent_shape": list(self.latent_shape),
            "num_shards": self.num_shards,
            "shards": shards,
        }
        write_json(self.folder / LATENT_INDEX, values)

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> LatentIndex:
        """Read the index of a folder.

        Raises:
            FileNotFoundError: the folder has no index.
            DataError: the file is something else, or damaged.
        """
        path = Path(folder) / LATENT_INDEX
        if not path.is_file():
            raise FileNotFoundError(f"no latents in {folder}: there is no {path.name}")
        try:
            values = read_json(path)
            if values["format"] != FORMAT:
                raise ValueError(f"its format is {values['format']!r}, not {FORMAT!r}")
            shards = {shard.pop("number"): ShardEntry(**shard) for shard in values["shards"]}
            C, h, w = values["latent_shape"]
            index = cls(
                Path(folder), values["settings"], values["num_classes"], values["class_names"], (C, h, w),
                values["num_shards"], shards,
            )  # fmt: skip
            index._check()
            return index
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is not an index of latents: {type(error).__name__}: {error}") from error

    def _check(self) -> None:
        """Raise ValueError, KeyError or TypeError for a value that :meth:`write` cannot have written."""
        counts = [self.num_classes, self.num_shards, *self.latent_shape, self.settings["image_size"]]
        counts += [count for entry in self.shards.values() for count in (entry.samples, entry.bytes)]
        if not all(type(count) is int and 0 <= count < 2**63 for count in counts):
            raise ValueError("wanted whole numbers of at least 0 for sizes and counts")
        if not isinstance(self.settings["flipped"], bool):
            raise ValueError(f"wanted true or false for flipped, found {self.settings['flipped']!r}")
        names = self.class_names
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise ValueError("wanted a list of text for class_names")
        for entry in self.shards.values():
            if Path(entry.file).name != entry.file:
                raise ValueError(f"wanted the name of a file beside it, found {entry.file!r}")
            if not isinstance(entry.stamp, str):
                raise ValueError(f"wanted text for stamp, found {entry.stamp!r}")
            if entry.samples > entry.bytes:
                raise ValueError(f"{entry.samples} samples cannot be in {entry.bytes} bytes")
        scale = self.scale
        if not (math.isfinite(scale.factor) and scale.factor != 0 and math.isfinite(scale.shift)):
            raise ValueError(f"wanted finite numbers for the scale, and no factor of 0, found {tuple(scale)}")

    @property
    def scale(self) -> LatentScale:
        """The scale from the autoencoder's latents to the model's."""
        return LatentScale(**self.settings["autoencoder"]["scale"])

    @property
    def kind(self) -> str:
        """Name the autoencoder and the scale, by which latents that cannot replace each other are told apart."""
        autoencoder = self.settings["autoencoder"]
        weights = str(autoencoder.get("weights_sha256", ""))[:12]
        return " ".join(
            ["latents of", str(autoencoder.get("kind")), *weights.split(), f"scaled by {tuple(self.scale)}"]
        )

    def check_same(self, other: LatentIndex) -> None:
        """Compare the settings.

        Raises:
            DataError: they differ.
        """
        for key, mine in self.settings.items():
            theirs = other.settings.get(key)
            if theirs != mine:
                raise DataError(f"{self.folder} was made with {key} = {mine}, not {theirs}: choose another folder")

    def drop_stale(self, stamps: Mapping[int, str]) -> dict[str, str]:
        """Remove the shards whose file is damaged or was made from other files than ``stamps`` has for its number.

        Returns:
            The reason for each file.
        """
        stale = {}
        for number, entry in list(self.shards.items()):
            changed = entry.stamp not in ("", stamps[number])
            if changed or not self._whole(entry):
                stale[entry.file] = "was made from files that have changed" if changed else "is missing or damaged"
                del self.shards[number]
        return stale

    def _whole(self, entry: ShardEntry) -> bool:
        path = self.folder / entry.file
        return path.is_file() and path.stat().st_size == entry.bytes and file_sha256(path) == entry.sha256


class LatentDataset(Dataset):
    """The latents in a folder that ``dimr encode`` wrote.

    A sample is drawn from the distribution that the autoencoder gave for the picture or its mirror image, and scaled
    by the factor in the autoencoder's configuration.
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
        self.kind = index.kind
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
        """Keep the entries whose file has the right size; the others are errors if nothing may be skipped."""
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
        """Read the labels of all files, and check the shapes of their tensors against the index."""
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
        """Draw a float32 latent ``[C, h, w]``; without ``random``, return the mean of the picture as it is."""
        flipped = random is not None and self.flip and random.coin()
        stored = self._handle(int(self._shard[index])).get_slice("moments")
        moments = stored[int(self._row[index]), int(flipped)].float()  # [C or 2C, h, w]
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
