"""Pictures in one ``.npz`` file: pixels, or picture files end to end."""

from __future__ import annotations

import logging
import math
import os
import struct
import zipfile
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ..dataset import ConcatenatedSource, ImageSource, file_stamp
from ..errors import DataError
from ..pictures import Decoding, decode_picture, require_pillow
from .labels import as_labels, choose_key

logger = logging.getLogger(__name__)

IMAGE_KEYS = ("images", "arr_0", "jpeg", "data")  # arr_0: its name in ADM's evaluation suite
NAME_KEYS = ("names", "class_names", "label_names")
SUFFIX = ".npy"
MAX_DEFLATE_RATIO = 1032  # the most bytes that one compressed byte can expand to


class NpzSource(ImageSource):
    """An ``.npz`` file with ``images`` uint8 ``[N, H, W, 3]``, or with ``jpeg`` uint8 and ``offsets``.

    ``jpeg`` holds picture files end to end; the i-th is ``jpeg[offsets[i] : offsets[i + 1]]``. ``data`` uint8
    ``[N, 3 S S]`` holds pictures plane after plane, as the batches of downsampled ImageNet do. Labels, in an array with
    one of the usual names, and ``names``, one for each class, are optional. An array stored without compression is
    memory-mapped.

    Args:
        labelled: False leaves labels and names unread.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        image_key: str | None = None,
        label_key: str | None = None,
        decoding: Decoding | None = None,
        labelled: bool = True,
    ) -> None:
        self.path = Path(path)
        self.decoding = decoding
        self._arguments = image_key, label_key, decoding, labelled
        arrays = array_names(self.path)
        image_key = _asked(self.path, arrays, image_key) or next((key for key in IMAGE_KEYS if key in arrays), None)
        if image_key is None:
            latents = "moments" in arrays or "latents" in arrays
            hint = f"; dimr encode {self.path} --from latents converts latents" if latents else ""
            raise DataError(f"{self.path} has no array {' or '.join(IMAGE_KEYS)}, only {', '.join(arrays)}{hint}")
        self._images = read_array(self.path, image_key)
        self.planar = image_key == "data" and self._images.ndim == 2
        if self.planar:
            self._images = _unfold(self.path, self._images)  # [N, 3, S, S]
        self._offsets = None
        if "offsets" in arrays and self._images.ndim == 1:
            self._offsets = read_array(self.path, "offsets")
        self._check_images(image_key)
        self.labels = self._read_labels(arrays, {image_key, "offsets"}, label_key) if labelled else None

    def _check_images(self, key: str) -> None:
        found = f"{self._images.dtype} {list(self._images.shape)}"
        if self._offsets is None:
            shape = self._images.shape
            H, W, C = (0, 0, 0) if len(shape) != 4 else (*shape[2:], shape[1]) if self.planar else shape[1:]
            if self._images.dtype != np.uint8 or C != 3 or H * W == 0:
                raise DataError(
                    f"{self.path}: {key} must be uint8 [N, H, W, 3], or uint8 [bytes] beside offsets; got {found}"
                )
        elif self._images.dtype != np.uint8 or not _rises(self._offsets, len(self._images)):
            raise DataError(f"{self.path}: offsets must rise within {key} of uint8; got {key} of {found}")

    def _read_labels(self, arrays: list[str], others: set[str], asked: str | None) -> np.ndarray | None:
        key = _asked(self.path, arrays, asked) or choose_key(arrays)
        names = next((name for name in NAME_KEYS if name in arrays), None)
        if key is None:
            left = [array for array in arrays if array not in {*others, *NAME_KEYS}]
            if left:
                logger.warning("%s: no labels are read; it also has %s (label_key names one)", self.path, left)
            return None
        values = read_array(self.path, key)
        if len(values.shape) not in (1, 2) or len(values) != len(self):
            found = f"{values.dtype} {list(values.shape)}"
            raise DataError(f"{self.path}: {key} must have one label for each of {len(self)} pictures, got {found}")
        labels = as_labels(values, lambda i: f"{self.path}: {key}[{i}]")
        self.class_names = labels.names
        if names is not None and labels.names is None:
            self.class_names = tuple(map(str, read_array(self.path, names).ravel()))
        return labels.ids

    def __reduce__(self) -> tuple[Any, ...]:
        return NpzSource, (self.path, *self._arguments)  # another process opens the file itself

    def __len__(self) -> int:
        return len(self._images) if self._offsets is None else len(self._offsets) - 1

    def name(self, index: int) -> str:
        return f"image {index}"

    def stamp(self, index: int) -> str:
        return file_stamp(self.path)

    def picture(self, index: int) -> Any:
        if self._offsets is None:
            pixels = self._images[index]
            return require_pillow().fromarray(
                np.ascontiguousarray(pixels.transpose(1, 2, 0) if self.planar else pixels)
            )
        data = self._images[self._offsets[index] : self._offsets[index + 1]]
        return decode_picture(data.tobytes(), f"{self.path}: {self.name(index)}", self.decoding)


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


def _asked(path: Path, arrays: list[str], key: str | None) -> str | None:
    if key is not None and key not in arrays:
        raise DataError(f"{path} has no array {key!r}, only {', '.join(arrays)}")
    return key


def _unfold(path: Path, data: np.ndarray) -> np.ndarray:
    """Shape the rows ``[N, 3 S S]`` to ``[N, 3, S, S]``."""
    side = math.isqrt(data.shape[1] // 3)
    if data.shape[1] != 3 * side * side or side == 0:
        raise DataError(f"{path}: data must be uint8 [N, 3 S S], got {data.dtype} {list(data.shape)}")
    return data.reshape(-1, 3, side, side)


def open_npz(
    path: str | os.PathLike[str],
    image_key: str | None = None,
    label_key: str | None = None,
    decoding: Decoding | None = None,
) -> ImageSource:
    """Open an ``.npz`` file, or all of a folder as one source.

    Labels of downsampled ImageNet are from 1 to 1000; they become 0 to 999.
    """
    files = sorted(Path(path).glob("*.npz")) if Path(path).is_dir() else [Path(path)]
    if not files:
        raise FileNotFoundError(f"no .npz file in {path}")
    sources = [NpzSource(file, image_key, label_key, decoding) for file in files]
    labels = [source.labels for source in sources if source.planar and source.labels is not None]
    if len(labels) == len(sources) and all(len(part) for part in labels) and min(part.min() for part in labels) == 1:
        logger.warning("%s: labels from 1 up, as those of downsampled ImageNet, are made to count from 0", path)
        for part in labels:
            part -= 1
    return sources[0] if len(sources) == 1 else ConcatenatedSource(sources)


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
