"""Output files of samples, written batch by batch, so that an interrupted run can continue."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..images import save_image, tile, to_pixels
from ..utils import read_json, replacing, require, write_json

SETTINGS = "sampling.json"
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
TENSORS = (".safetensors", ".npz")
MIN_SHOWN_SIZE = 40  # in pixels; smaller images are enlarged in a picture of many
DIGITS = 6


class SampleFilesError(Exception):
    """The output folder holds something else, or a file cannot be written."""


class SampleFiles(Protocol):
    """Samples in batches of consecutive ``numbers``. Each file in ``folder`` is complete or missing."""

    folder: Path

    def has(self, numbers: range) -> bool:
        """Return True if the whole batch is there and can be read."""
        ...

    def put(self, numbers: range, samples: Tensor) -> None:
        """Write a batch: float32 ``[B, C, H, W]``, images in [-1, 1]."""
        ...

    def finish(self, batches: list[range], labels: Tensor) -> tuple[int, ...]:
        """Make the output of the batches, which are all there; return the shape ``(C, H, W)`` of one sample."""
        ...


def claim(folder: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Take ``folder`` for samples drawn with ``settings``, continuing if it holds some of them already.

    Raises:
        SampleFilesError: without ``overwrite``, it holds samples of other settings; or it holds something else.
    """
    kept = folder / SETTINGS
    if folder.is_dir():
        for leftover in folder.glob(".*.partial*"):  # of a killed process
            leftover.unlink()
        if not kept.is_file() and any(folder.iterdir()):
            raise SampleFilesError(f"{folder} holds something else: it has files and no {SETTINGS}")
    if overwrite:
        _clear(folder)
    if kept.is_file():
        _compare(folder, _read_settings(kept), json.loads(json.dumps(settings)))
    else:
        write_json(kept, settings)


def _clear(folder: Path) -> None:
    # The settings go last: until then they mark the folder as one of samples.
    for path in [*folder.glob("[0-9]*.png"), *folder.glob("[0-9]*.safetensors"), folder / SETTINGS]:
        path.unlink(missing_ok=True)


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        values = read_json(path)
    except ValueError as error:
        raise SampleFilesError(f"{path} cannot be read: {error}") from error
    return values if isinstance(values, dict) else {}


def _compare(folder: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    keys = [key for key in {**here, **there} if there.get(key) != here.get(key)]
    if not keys:
        return
    differences = "; ".join(f"{key} {_short(there.get(key))} there, {_short(here.get(key))} here" for key in keys)
    raise SampleFilesError(
        f"{folder} holds samples of other settings ({differences}): "
        f"give the same to go on, another --output, or --overwrite to start again"
    )


def _short(value: Any, limit: int = 40) -> str:
    text = json.dumps(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


class PictureFolder:
    """A folder of pictures by number: ``000000.png`` and so on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, number: int) -> Path:
        return self.folder / f"{number:0{DIGITS}d}.png"

    def has(self, numbers: range) -> bool:
        return all(_is_readable(self.path(number)) for number in numbers)

    def put(self, numbers: range, samples: Tensor) -> None:
        for number, pixels in zip(numbers, to_pixels(samples), strict=True):
            save_image(self.path(number), pixels)

    def finish(self, batches: list[range], labels: Tensor) -> tuple[int, ...]:
        Image = require("PIL.Image", "demo", "reading pictures")
        with Image.open(self.path(0)) as picture:
            return (3, picture.height, picture.width)


def _is_readable(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with require("PIL.Image", "demo", "reading pictures").open(path) as picture:
            picture.verify()  # the checksums of all its chunks
    except (OSError, SyntaxError):  # Pillow raises either over a damaged PNG
        return False
    return True


class OneFile:
    """One picture or one file of tensors, assembled from the parts in ``FILE.parts/`` when all of them are there.

    Args:
        pixels: write pixels to an ``.npz``, as ADM's evaluation suite reads them: ``arr_0`` uint8 ``[N, H, W, 3]`` and
            the classes in ``arr_1``. Otherwise, and in ``.safetensors`` always, the arrays are float32
            ``samples [N, C, H, W]`` and ``labels``.
        columns: number of images in a row of a picture.
    """

    def __init__(self, path: Path, pixels: bool, columns: int) -> None:
        self.path = path
        self.folder = path.with_name(path.name + ".parts")
        self.suffix = path.suffix.lower()
        self.pixels = pixels and self.suffix == ".npz"
        self.columns = columns
        self._safetensors = require("safetensors", "demo", "keeping samples")
        require("safetensors.torch", "demo", "keeping samples")

    @property
    def finished(self) -> bool:
        """True if the file is there, and no parts of a run that would replace it."""
        return self.path.exists() and not self.folder.exists()

    def _part(self, numbers: range) -> Path:
        return self.folder / f"{numbers.start:0{DIGITS}d}.safetensors"

    def _read(self, numbers: range) -> Tensor:
        return self._safetensors.torch.load_file(self._part(numbers))["samples"]

    def has(self, numbers: range) -> bool:
        try:
            return len(self._read(numbers)) == len(numbers)
        except (OSError, KeyError, self._safetensors.SafetensorError):
            return False

    def put(self, numbers: range, samples: Tensor) -> None:
        kept = to_pixels(samples) if self.pixels else samples
        with replacing(self._part(numbers)) as temporary:
            self._save(temporary, {"samples": kept.contiguous()})

    def finish(self, batches: list[range], labels: Tensor) -> tuple[int, ...]:
        """Assemble the file, then remove the parts. An ``.npz`` takes no more memory than one part."""
        shape = tuple(self._read(batches[0]).shape[1:])
        with replacing(self.path) as temporary:
            if self.suffix == ".npz":
                self._write_npz(temporary, batches, labels, shape)
            else:
                self._write_at_once(temporary, torch.cat([self._read(numbers) for numbers in batches]), labels)
        _clear(self.folder)
        self.folder.rmdir()
        return (shape[2], *shape[:2]) if self.pixels else shape

    def _write_npz(self, path: Path, batches: list[range], labels: Tensor, shape: tuple[int, ...]) -> None:
        require("numpy", "demo", "writing .npz")
        names = ("arr_0", "arr_1") if self.pixels else ("samples", "labels")
        parts = (self._read(numbers) for numbers in batches)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
            _write_array(archive, names[0], (len(labels), *shape), parts)
            _write_array(archive, names[1], tuple(labels.shape), iter((labels,)))

    def _write_at_once(self, path: Path, samples: Tensor, labels: Tensor) -> None:
        if self.suffix in PICTURES:
            save_image(path, tile(samples, self.columns, zoom=max(1, MIN_SHOWN_SIZE // samples.shape[-1])))
        else:
            self._save(path, {"samples": samples, "labels": labels})

    def _save(self, path: Path, tensors: dict[str, Tensor]) -> None:
        try:
            self._safetensors.torch.save_file(tensors, path)
        except self._safetensors.SafetensorError as error:  # raised for a full disk too
            raise SampleFilesError(f"{self.path} cannot be written: {error}") from error


def _write_array(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], parts: Iterator[Tensor]) -> None:
    """Write an array of ``shape``, given as parts of its rows."""
    from numpy.lib import format as npy

    first = next(parts).numpy()
    header = {"descr": npy.dtype_to_descr(first.dtype), "fortran_order": False, "shape": shape}
    with archive.open(
        zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True
    ) as file:  # without a date, so that the same samples give the same bytes
        npy.write_array_header_1_0(file, header)
        file.write(first.tobytes())
        for part in parts:
            file.write(part.numpy().tobytes())
