"""The description of a data set, as written in a recipe."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..settings import check_types, from_table
from .errors import DataError

KINDS = ("folder", "hugging_face", "parquet", "npz", "tar", "zip", "latents")
LATENT_INDEX = "index.json"
OWN_KEYS = {
    "split": ("hugging_face", "parquet", "folder"),
    "image_key": ("hugging_face", "parquet", "npz"),
    "label_key": ("hugging_face", "parquet", "npz", "folder"),
}
REPA_LATENTS = "*/img-mean-std-*.npy"  # see importing.py, as for the next two
FOREIGN_LATENTS, LATENT_FOLDERS = ("*.safetensors", "[0-9]*.npy"), ("*features*/0.npy", REPA_LATENTS)
PICKLED_BATCHES = ("train_data_batch_*", "val_data", "data_batch_*")  # of downsampled ImageNet and of CIFAR


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """The description of a data set.

    Attributes:
        path: a folder or file; for ``tar`` also a pattern.
        kind: one of :data:`KINDS`; "auto" determines it from ``path``.
        image_size: width and height of the cropped pictures. Latents have their size already.
        flip: flip each sample horizontally with probability 1/2.
        max_skipped: number of unreadable files that are counted, logged and replaced; one more is an error.
        split: split of a Hugging Face data set, or sub-folder to read.
        image_key, label_key: columns of a Hugging Face data set or of a folder's ``metadata.jsonl``, or arrays of an
            npz file, if not the usual ones.
        exif_orientation: turn pictures as their EXIF data says; ADM's preprocessing of ImageNet does not.
        background: the colour behind transparent pictures, by name or as ``#rrggbb``.

    Raises:
        DataError: a value has the wrong type or is out of range.
    """

    path: str
    kind: str = "auto"
    image_size: int | None = None
    flip: bool = True
    max_skipped: int = 0
    split: str | None = None
    image_key: str | None = None
    label_key: str | None = None
    exif_orientation: bool = True
    background: str = "white"

    def __post_init__(self) -> None:
        try:
            check_types(self)
        except TypeError as error:
            raise DataError(str(error)) from error
        if self.kind not in ("auto", *KINDS):
            raise DataError(f"kind must be one of auto, {', '.join(KINDS)}; got {self.kind!r}")
        if self.image_size is not None and self.image_size < 1:
            raise DataError(f"image_size must be at least 1, got {self.image_size}")
        if self.max_skipped < 0:
            raise DataError(f"max_skipped must be at least 0, got {self.max_skipped}")

    def to_dict(self) -> dict[str, Any]:
        """Return the values that are not None, which TOML cannot express."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataSpec:
        """Build a description from a recipe's table."""
        try:
            return from_table(cls, values)
        except ValueError as error:
            raise DataError(str(error)) from error

    def resolved(self) -> DataSpec:
        """Determine the kind, and check that the values it needs, and no others, are set."""
        spec = dataclasses.replace(self, kind=guess_kind(self.path)) if self.kind == "auto" else self
        for key, kinds in OWN_KEYS.items():
            if getattr(spec, key) is not None and spec.kind not in kinds:
                raise DataError(f"{key} is for {', '.join(kinds)}; {spec.path} is of the kind {spec.kind}")
        if spec.image_size is None and spec.kind != "latents":
            raise DataError(f"image_size is missing: how large to make the pictures of {spec.path}")
        return spec


def guess_kind(path: str | os.PathLike[str]) -> str:
    """Determine the kind of data at a path.

    Raises:
        FileNotFoundError: there is nothing at it.
    """
    text, place = os.fspath(path), Path(path)
    if text.endswith(".npz"):
        return "npz"
    if text.endswith((".tar", ".tgz", ".tar.gz")):
        return "tar"
    if text.endswith(".zip"):
        return "zip"
    if not place.is_dir():
        raise FileNotFoundError(f"no data at {path}")
    if (place / LATENT_INDEX).is_file():
        return "latents"
    if any((place / name).is_file() for name in ("dataset_dict.json", "dataset_info.json")):
        return "hugging_face"
    if any(place.glob("*.tar")):
        return "tar"
    if any(place.glob("*.parquet")) or any(place.glob("data/*.parquet")):
        return "parquet"
    folders = any(child.is_dir() for child in place.iterdir())
    if any(any(place.glob(pattern)) for pattern in (LATENT_FOLDERS if folders else FOREIGN_LATENTS)):
        raise DataError(f"{place} holds latents of another program: dimr encode {place} --from latents converts them")
    if folders:
        return "folder"
    pickled = sorted(file.name for name in PICKLED_BATCHES for file in place.glob(name) if not file.suffix)
    if pickled:
        raise DataError(f"{place} holds pickles ({pickled[0]}), which may run code: take the same data as .npz files")
    return "npz" if any(place.glob("*.npz")) else "folder"
