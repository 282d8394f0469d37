"""Pictures in one ``.npz`` file: pixels, or picture files end to end."""

from __future__ import annotations

import math
import os
import struct
import zipfile
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ..dataset import ImageSource
from ..errors import DataError
from ..pictures import decode_picture, require_pillow

IMAGE_KEYS = ("images", "arr_0", "jpeg")  # arr_0 and arr_1: the names in ADM's evaluation suite
LABEL_KEYS = ("labels", "label", "arr_1")
SUFFIX = ".npy"
MAX_DEFLATE_RATIO = 1032  # the most bytes that one compressed byte can expand to


class NpzSource(ImageSource):
    """An ``.npz`` file with ``images`` uint8 ``[N, H, W, 3]``, or with ``jpeg`` uint8 and ``offsets``.

    ``jpeg`` holds picture files end to end; the i-th is ``jpeg[offsets[i] : offsets[i + 1]]``. ``labels [N]`` and
    ``names``, one for each class, are optional. An array stored without compression is memory-mapped.
    """

    def __init__(
        self, path: str | os.PathLike[str], image_key: str | None = None, label_key: str | None = None
    ) -> None:
        self.path = Path(path)
        self._keys = image_key, label_key
        arrays = array_names(self.path)
        image_key = _choose(self.path, arrays, image_key, IMAGE_KEYS)
        if image_key is None:
            raise DataError(f"{self.path} has no array {' or '.join(IMAGE_KEYS)}, only {', '.join(arrays)}")
        label_key = _choose(self.path, arrays, label_key, LABEL_KEYS)
        self._images = read_array(self.path, image_key)
        self._offsets = None
        if "offsets" in arrays and self._images.ndim == 1:
            self._offsets = read_array(self.path, "offsets")
        self._check_images(image_key)
        self.labels = None if label_key is None else self._read_labels(label_key)
        if self.labels is not None and "names" in arrays:
            self.class_names = tuple(map(str, read_array(self.path, "names").ravel()))

    def _check_images(self, key: str) -> None:
        found = f"{self._images.dtype} {list(self._images.shape)}"
        if self._offsets is None:
            *_, H, W, C = self._images.shape if self._images.ndim == 4 else (0, 0, 0)
            if self._images.dtype != np.uint8 or C != 3 or H * W == 0:
                raise DataError(
                    f"{self.path}: {key} must be uint8 [N, H, W, 3], or uint8 [bytes] beside offsets; got {found}"
                )
        elif self._images.dtype != np.uint8 or not _rises(self._offsets, len(self._images)):
            raise DataError(f"{self.path}: offsets must rise within {key} of uint8; got {key} of {found}")

    def _read_labels(self, key: str) -> np.ndarray:
        labels = read_array(self.path, key)
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


def _rises(offsets: np.ndarray, end: int) -> bool:
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or len(offsets) == 0:
        return False
    return offsets[0] >= 0 and offsets[-1] <= end and not np.any(offsets[1:] < offsets[:-1])


def array_names(path: str | os.PathLike[str]) -> list[str]:
    """List the arrays of an ``.npz`` file.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is damaged, or something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(SUFFIX) for name in archive.namelist() if name.endswith(SUFFIX)]
    except Exception as error:  # zipfile raises many types over damage
        raise DataError(f"{path} is not a whole .npz file: {error}") from error


def _choose(path: Path, arrays: list[str], asked: str | None, usual: tuple[str, ...]) -> str | None:
    if asked is not None and asked not in arrays:
        raise DataError(f"{path} has no array {asked!r}, only {', '.join(arrays)}")
    return asked or next((key for key in usual if key in arrays), None)


def read_array(path: str | os.PathLike[str], key: str) -> np.ndarray:
    """Read an array of an ``.npz`` file, or map it if it is stored without compression. Never unpickles objects.

    Raises:
        DataError: it is damaged, holds Python objects, or is smaller than its header says.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _array(Path(path), archive, archive.getinfo(key + SUFFIX))
    except Exception as error:  # zipfile, zlib and NumPy raise many types over damage
        raise DataError(f"{path}: the array {key!r} cannot be read: {error or type(error).__name__}") from error


def _array(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        header, data = _read_header(file), file.tell()
    size = math.prod(header.shape) * header.dtype.itemsize
    if size != member.file_size - data:
        raise ValueError(f"its header promises {size} bytes, it has {member.file_size - data}")
    if member.compress_type == zipfile.ZIP_STORED:
        return _mapped(path, member, header, data)
    if size > member.compress_size * MAX_DEFLATE_RATIO:  # before the memory is allocated
        raise ValueError(f"{member.compress_size} compressed bytes cannot hold {size}")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]


def _read_header(file: IO[bytes]) -> _Header:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    header = _Header(*read(file))
    if header.dtype.hasobject:
        raise ValueError("it holds Python objects")
    return header


def _mapped(path: Path, member: zipfile.ZipInfo, header: _Header, data: int) -> np.ndarray:
    """Memory-map the array in an uncompressed member of the archive."""
    with path.open("rb") as raw:
        raw.seek(member.header_offset + 26)  # the last 4 of 30 bytes: lengths of the name and the extra field
        name, extra = struct.unpack("<HH", raw.read(4))
    start = member.header_offset + 30 + name + extra + data
    if 0 in header.shape:
        return np.empty(header.shape, header.dtype)
    return np.memmap(path, header.dtype, "r", start, header.shape, "F" if header.fortran else "C")
