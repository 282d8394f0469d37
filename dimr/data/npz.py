"""Pictures in one ``.npz`` file: pixels, or picture files end to end."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from .dataset import ImageSource
from .errors import DataError
from .preprocessing import decode_picture, require_pillow

IMAGE_KEYS = ("images", "arr_0", "jpeg")  # arr_0 and arr_1: the samples that ADM's evaluation suite reads
LABEL_KEYS = ("labels", "label", "arr_1")


class NpzSource(ImageSource):
    """``images`` uint8 ``[N, H, W, 3]``; or ``jpeg`` uint8, picture files end to end, of which the i-th is
    ``jpeg[offsets[i] : offsets[i + 1]]``. ``labels [N]`` and ``names``, of the classes, where there are any.

    An array stored without compression is mapped, so it may be larger than memory.
    """

    def __init__(
        self, path: str | os.PathLike[str], image_key: str | None = None, label_key: str | None = None
    ) -> None:
        self.path = Path(path)
        self._keys = image_key, label_key
        arrays = _keys(self.path)
        image_key = _choose(self.path, arrays, image_key, IMAGE_KEYS)
        if image_key is None:
            raise DataError(f"{self.path} has no array {' or '.join(IMAGE_KEYS)}, only {', '.join(arrays)}")
        label_key = _choose(self.path, arrays, label_key, LABEL_KEYS)
        self._images = _array(self.path, image_key)
        self._offsets = _array(self.path, "offsets") if "offsets" in arrays and self._images.ndim == 1 else None
        self._check_images(image_key)
        self.labels = None if label_key is None else self._read_labels(label_key)
        if self.labels is not None and "names" in arrays:
            self.class_names = tuple(str(name) for name in _array(self.path, "names"))

    def _check_images(self, key: str) -> None:
        found = f"{self._images.dtype} {list(self._images.shape)}"
        if self._offsets is None:
            if self._images.dtype != np.uint8 or self._images.ndim != 4 or self._images.shape[-1] != 3:
                raise DataError(
                    f"{self.path}: {key} must be uint8 [N, H, W, 3], or uint8 [bytes] beside offsets; got {found}"
                )
        elif self._images.dtype != np.uint8 or np.any(np.diff(self._offsets, append=len(self._images)) < 0):
            raise DataError(f"{self.path}: offsets must rise within {key} of uint8; got {key} of {found}")

    def _read_labels(self, key: str) -> np.ndarray:
        labels = _array(self.path, key)
        if labels.shape != (len(self),) or labels.dtype.kind not in "iu":
            raise DataError(
                f"{self.path}: {key} must be whole numbers [{len(self)}], got {labels.dtype} {list(labels.shape)}"
            )
        return np.array(labels, np.int64)

    def __reduce__(self) -> tuple[Any, ...]:
        return NpzSource, (self.path, *self._keys)  # another process opens the file itself

    def __len__(self) -> int:
        return len(self._images) if self._offsets is None else len(self._offsets) - 1

    def name(self, index: int) -> str:
        return f"image {index}"

    def picture(self, index: int) -> Any:
        if self._offsets is None:
            return require_pillow().fromarray(np.ascontiguousarray(self._images[index]))
        data = self._images[self._offsets[index] : self._offsets[index + 1]]
        return decode_picture(data.tobytes(), f"{self.path}: {self.name(index)}")


def _keys(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except zipfile.BadZipFile as error:
        raise DataError(f"{path} is not a whole .npz file: {error}") from error


def _choose(path: Path, arrays: list[str], asked: str | None, usual: tuple[str, ...]) -> str | None:
    if asked is not None and asked not in arrays:
        raise DataError(f"{path} has no array {asked!r}, only {', '.join(arrays)}")
    return asked or next((key for key in usual if key in arrays), None)


def _array(path: Path, key: str) -> np.ndarray:
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo(f"{key}.npy")
            if member.compress_type == zipfile.ZIP_STORED:
                return _mapped(path, archive, member)
        with np.load(path) as arrays:
            return arrays[key]
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, struct.error) as error:
        raise DataError(f"{path}: the array {key!r} cannot be read: {error}") from error


def _mapped(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """The array in a member that is stored as it is, read from the file when it is looked at."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        header = file.tell()
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    with path.open("rb") as raw:
        raw.seek(member.header_offset + 26)  # lengths of the name and the extra field, the last of 30 bytes
        name, extra = struct.unpack("<HH", raw.read(4))
    start = member.header_offset + 30 + name + extra + header
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")
