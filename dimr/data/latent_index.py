"""The index of a folder of latents: what was encoded and how, and which shards are finished."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

from ..autoencoder import LatentScale
from ..files import read_json, write_json
from ..hashes import file_sha256
from .errors import DataError
from .spec import LATENT_INDEX

FORMAT = "dimr-latents-1"


@dataclasses.dataclass(frozen=True)
class ShardEntry:
    """A finished file: its samples come from the source's samples ``first`` and on, less the ``skipped``."""

    file: str
    first: int
    samples: int
    bytes: int
    sha256: str
    skipped: list[list[str]]  # name and reason


@dataclasses.dataclass
class LatentIndex:
    """Attributes:
    settings: what decides the files' content; a later run must have the same.
    num_classes, class_names: the source's.
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
        """Raises:
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
        """Raises ValueError, KeyError or TypeError where a value cannot be what :meth:`write` wrote."""
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
            if entry.samples > entry.bytes:
                raise ValueError(f"{entry.samples} samples cannot be in {entry.bytes} bytes")
        scale = self.scale
        if not (math.isfinite(scale.factor) and scale.factor != 0 and math.isfinite(scale.shift)):
            raise ValueError(f"wanted finite numbers for the scale, and no factor of 0, found {tuple(scale)}")

    @property
    def scale(self) -> LatentScale:
        """From the autoencoder's latents to the model's."""
        return LatentScale(**self.settings["autoencoder"]["scale"])

    def check_same(self, other: LatentIndex) -> None:
        """Raises:
        DataError: ``other``'s settings are not these.
        """
        for key, mine in self.settings.items():
            theirs = other.settings.get(key)
            if theirs != mine:
                raise DataError(f"{self.folder} was made with {key} = {mine}, not {theirs}: choose another folder")

    def drop_damaged(self) -> list[ShardEntry]:
        """Forget and return the shards whose file is missing or has another checksum."""
        damaged = {number: entry for number, entry in self.shards.items() if not self._whole(entry)}
        for number in damaged:
            del self.shards[number]
        return list(damaged.values())

    def _whole(self, entry: ShardEntry) -> bool:
        path = self.folder / entry.file
        return path.is_file() and path.stat().st_size == entry.bytes and file_sha256(path) == entry.sha256
