"""Pictures in tar files of WebDataset's layout.

The files are read by random access, not as streams: so a sample has an index, and order, sharding and resuming work as
with any other source. The files must be on a file system and uncompressed.
"""

from __future__ import annotations

import glob
import json
import os
import re
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..dataset import ImageSource
from ..errors import DataError, SampleError, Skipped
from ..pictures import PICTURES, decode_picture

RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
MAX_FILES = 1_000_000


class _Entry(NamedTuple):
    name: str
    offset: int
    size: int
    label: int | None


class TarSource(ImageSource):
    """A tar file, a folder of them, or a pattern such as ``train-{0000..0146}.tar`` or ``train-*.tar``.

    Members whose paths are equal up to the first dot of the file name belong to one sample: a picture, and its label
    in ``.cls`` (a number in text) or in ``.json`` (``{"label": 3}``). A missing or damaged file is an error; if not
    ``strict``, it is listed in ``missing``.
    """

    def __init__(self, path: str | os.PathLike[str], strict: bool = True) -> None:
        self.shards = expand(path)
        missing: list[Skipped] = []
        entries: list[list[_Entry]] = []
        for shard in self.shards:
            found, problems = _read_shard(shard)
            entries.append(found)
            missing += problems
        if missing and strict:
            raise DataError(str(missing[0]))
        self.missing = tuple(missing)
        every = [entry for part in entries for entry in part]
        # Arrays, because counting references to a list's objects would copy its memory in each worker process.
        self._names = np.array([os.fsencode(entry.name) for entry in every], dtype=np.bytes_)
        self._shard = np.repeat(np.arange(len(self.shards)), [len(part) for part in entries])
        self._extent = np.array([entry[1:3] for entry in every], np.int64).reshape(-1, 2)  # [N, 2]: offset, size
        self.labels = self._labels(every)

    def _labels(self, entries: list[_Entry]) -> np.ndarray | None:
        unlabelled = [i for i, entry in enumerate(entries) if entry.label is None]
        if len(unlabelled) == len(entries):
            return None
        if unlabelled:
            raise DataError(f"{self._place(unlabelled[0])} has no label (.cls or .json), others have")
        return np.array([entry.label for entry in entries], np.int64)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return f"{self.shards[self._shard[index]].name}/{os.fsdecode(self._names[index])}"

    def _place(self, index: int) -> str:
        return f"{self.shards[self._shard[index]]}: {os.fsdecode(self._names[index])}"

    def picture(self, index: int) -> Any:
        shard = self.shards[self._shard[index]]
        offset, size = self._extent[index].tolist()
        try:
            with shard.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise SampleError(str(shard), error.strerror or str(error)) from error
        if len(data) < size:
            raise SampleError(str(shard), "it has become shorter")
        return decode_picture(data, self._place(index))


def expand(path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """List the tar files that a path, a folder or a pattern stands for. Those of a numbered range need not exist."""
    text = os.fspath(path)
    if os.path.isdir(text):
        text = os.path.join(glob.escape(text), "*.tar")
    if match := RANGE.search(text):
        first, last = match.groups()
        if not 0 <= int(last) - int(first) < MAX_FILES:
            raise DataError(f"{text} stands for no files, or for more than {MAX_FILES} files")
        numbers = [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
        return tuple(p for n in numbers for p in expand(text[: match.start()] + n + text[match.end() :]))
    if not glob.has_magic(text):
        return (Path(text),)
    found = sorted(glob.glob(text))
    if not found:
        raise FileNotFoundError(f"no tar files at {path}")
    return tuple(map(Path, found))


def _read_shard(shard: Path) -> tuple[list[_Entry], list[Skipped]]:
    """List a file's samples; none if it is damaged, because the lost ones could not be counted."""
    try:
        with tarfile.open(shard, "r:") as archive:
            entries, problems = _read_members(shard, archive)
            _check_end(archive)
            return entries, problems
    except OSError as error:
        return [], [Skipped(str(shard), error.strerror or str(error))]
    except Exception as error:  # tarfile raises many types over damaged headers
        return [], [Skipped(str(shard), f"not a whole, uncompressed tar file: {error}")]


def _read_members(shard: Path, archive: tarfile.TarFile) -> tuple[list[_Entry], list[Skipped]]:
    entries, problems = [], []
    pictures: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, int] = {}
    for member in archive:
        if not member.isfile():
            continue
        folder, _, file = member.name.rpartition("/")
        stem, _, extension = file.partition(".")
        key = f"{folder}/{stem}"
        if f".{extension}".lower().endswith(PICTURES):
            if key in pictures:
                problems.append(Skipped(f"{shard}: {member.name}", f"a second picture of {pictures[key].name}"))
            pictures.setdefault(key, member)
        elif extension in ("cls", "json"):
            label = _label(archive, member, extension)
            if label is not None:
                labels[key] = label
    for key, member in pictures.items():
        entries.append(_Entry(member.name, member.offset_data, member.size, labels.get(key)))
    problems += [Skipped(f"{shard}: {key}", "a label without a picture") for key in labels if key not in pictures]
    return entries, problems


def _label(archive: tarfile.TarFile, member: tarfile.TarInfo, extension: str) -> int | None:
    file = archive.extractfile(member)
    text = b"" if file is None else file.read()
    try:
        label = int(text) if extension == "cls" else json.loads(text).get("label")
        if label is not None and not (type(label) is int and abs(label) < 2**63):
            raise ValueError
        return label
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{member.name} is no label: {text[:40]!r}") from None


def _check_end(archive: tarfile.TarFile) -> None:
    """Check for the end mark, a block of zeros: tarfile takes a damaged header for the end of the archive."""
    archive.fileobj.seek(archive.offset)  # type: ignore[union-attr]
    block = archive.fileobj.read(tarfile.BLOCKSIZE)  # type: ignore[union-attr]
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise tarfile.ReadError(f"no end mark at byte {archive.offset}")
