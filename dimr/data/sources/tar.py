"""Pictures in tar files of WebDataset's layout.

The files are read by random access, not as streams: so a sample has an index, and order, sharding and resuming work as
with any other source. The files must be on a file system and uncompressed.
"""

from __future__ import annotations

import glob
import json
import logging
import os
import posixpath
import re
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..dataset import ImageSource, file_stamp
from ..errors import DataError, SampleError, Skipped
from ..pictures import PICTURES, Decoding, decode_picture
from .labels import LABEL_FILES, Labels, as_labels, choose_key, from_folders, labels_by_name, warn_of_other_files

logger = logging.getLogger(__name__)

RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
MAX_FILES = 1_000_000
MAX_LINKS = 40  # from one to the next, as Linux follows them


class _Entry(NamedTuple):
    name: str
    offset: int
    size: int
    label: Any


class _Picture(NamedTuple):
    name: str
    content: tarfile.TarInfo  # another member if the picture is a link


class TarSource(ImageSource):
    """A tar file, a folder of them, or a pattern such as ``train-{0000..0146}.tar`` or ``train-*.tar``.

    Members whose paths are equal up to the first dot of the file name belong to one sample: a picture, and its label
    in ``.cls`` or ``.cls.txt`` (an id or a name in text) or in ``.json`` (``{"label": 3}``), or in a file for all of
    them (``dataset.json``, ``metadata.jsonl`` or ``.csv``, see :mod:`.labels`). Without any of these, the folders that
    the members are in are classes. Links to other members are followed. A missing or damaged file is an error; if not
    ``strict``, it is listed in ``missing``.
    """

    def __init__(self, path: str | os.PathLike[str], strict: bool = True, decoding: Decoding | None = None) -> None:
        self.decoding = decoding
        self.shards = expand(path)
        missing: list[Skipped] = []
        entries: list[list[_Entry]] = []
        others: list[str] = []
        for shard in self.shards:
            found, problems, other = _read_shard(shard)
            entries.append(found)
            missing += problems
            others += [f"{shard.name}/{name}" for name in other]
        if missing and strict:
            raise DataError(str(missing[0]))
        self.missing = tuple(missing)
        every = [entry for part in entries for entry in part]
        # Arrays, because counting references to a list's objects would copy its memory in each worker process.
        self._names = np.array([os.fsencode(entry.name) for entry in every], dtype=np.bytes_)
        self._shard = np.repeat(np.arange(len(self.shards)), [len(part) for part in entries])
        self._extent = np.array([entry[1:3] for entry in every], np.int64).reshape(-1, 2)  # [N, 2]: offset, size
        self.labels, self.class_names = self._labels(every) or (None, None)
        warn_of_other_files(path, others)

    def _labels(self, entries: list[_Entry]) -> Labels | None:
        unlabelled = [i for i, entry in enumerate(entries) if entry.label is None]
        if len(unlabelled) == len(entries):
            return from_folders([entry.name for entry in entries])
        if unlabelled:
            raise DataError(f"{self._place(unlabelled[0])} has no label (.cls or .json), others have")
        return as_labels([entry.label for entry in entries], lambda i: f"the label of {self._place(i)}")

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return f"{self.shards[self._shard[index]].name}/{os.fsdecode(self._names[index])}"

    def _place(self, index: int) -> str:
        return f"{self.shards[self._shard[index]]}: {os.fsdecode(self._names[index])}"

    def stamp(self, index: int) -> str:
        return file_stamp(self.shards[self._shard[index]])

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
        return decode_picture(data, self._place(index), self.decoding)


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


def _read_shard(shard: Path) -> tuple[list[_Entry], list[Skipped], list[str]]:
    """List a file's samples, problems and other members; no samples if it is damaged: the lost could not be counted."""
    try:
        with tarfile.open(shard, "r:") as archive:
            found = _read_members(shard, archive)
            _check_end(archive)
            return found
    except DataError:
        raise
    except OSError as error:
        return [], [Skipped(str(shard), error.strerror or str(error))], []
    except Exception as error:  # tarfile raises many types over damaged headers
        return [], [Skipped(str(shard), f"not a whole, uncompressed tar file: {error}")], []


def _read_members(shard: Path, archive: tarfile.TarFile) -> tuple[list[_Entry], list[Skipped], list[str]]:
    problems, others = [], []
    pictures: dict[str, _Picture] = {}
    labels: dict[str, Any] = {}
    json_files: dict[str, tuple[str, bytes]] = {}  # name and text
    label_files: dict[str, bytes] = {}  # text by name
    members = {posixpath.normpath(member.name): member for member in archive}
    for member in archive:
        folder, _, file = member.name.rpartition("/")
        is_file = member.isfile() or member.islnk() or member.issym()
        if not is_file or file.startswith("."):  # macOS adds a ._name to every name
            continue
        stem, _, extension = file.partition(".")
        key, extension = f"{folder}/{stem}", extension.lower()
        if f".{extension}".endswith(PICTURES):
            content = _content(member, members)
            if isinstance(content, str):
                problems.append(Skipped(f"{shard}: {member.name}", content))
            elif key in pictures:
                problems.append(Skipped(f"{shard}: {member.name}", f"a second picture of {pictures[key].name}"))
            else:
                pictures[key] = _Picture(member.name, content)
        elif file in LABEL_FILES:
            label_files[member.name] = _read(archive, member)
        elif extension in ("cls", "cls.txt"):
            label = _read(archive, member).decode(errors="replace").strip()
            labels[key] = int(label) if label.isdecimal() and len(label) < 19 else label
        elif extension == "json":
            json_files[key] = member.name, _read(archive, member)
        elif member.isfile():
            others.append(member.name)
    for key, (name, text) in json_files.items():
        if key not in labels and (value := _json_label(f"{shard}: {name}", text)) is not None:
            labels[key] = value
    for name, text in label_files.items():
        _add_labels(labels, pictures, f"{shard}: {name}", name, text)
    entries = [_Entry(name, file.offset_data, file.size, labels.get(key)) for key, (name, file) in pictures.items()]
    problems += [Skipped(f"{shard}: {key}", "a label without a picture") for key in labels if key not in pictures]
    return entries, problems, others


def _content(member: tarfile.TarInfo, members: dict[str, tarfile.TarInfo]) -> tarfile.TarInfo | str:
    """Follow links to the member whose bytes are the file's, or say why there is none."""
    target = member
    for _ in range(MAX_LINKS):
        if target.issparse():
            return (
                "stored without its zeros, which cannot be read by random access: pack it without tar's option --sparse"
            )
        if target.isfile():
            return target
        folder = posixpath.dirname(target.name) if target.issym() else ""  # a hard link has the path in the archive
        found = members.get(posixpath.normpath(posixpath.join(folder, target.linkname)))
        if found is None or not (found.isfile() or found.islnk() or found.issym()):
            break
        target = found
    return f"a link to {member.linkname}, which is not a file in it"


def _add_labels(labels: dict[str, Any], pictures: dict[str, _Picture], place: str, name: str, text: bytes) -> None:
    """Add the labels of pictures that have none yet from a file for all pictures in its folder."""
    by_name = labels_by_name(text, place)
    if by_name is None:
        return
    folder = name.removeprefix("./").rpartition("/")[0]
    prefix = f"{folder}/" if folder else ""
    for key, picture in pictures.items():
        path = picture.name.removeprefix("./")
        if path.startswith(prefix) and (label := by_name.pop(path.removeprefix(prefix), None)) is not None:
            labels.setdefault(key, label)
    if by_name:
        logger.warning("%s lists %d pictures that are not in this file, first %s", place, len(by_name), min(by_name))


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return b"" if file is None else file.read()


def _json_label(place: str, text: bytes) -> Any:
    """Read the label in a JSON object; None if it has none."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(f"{place} is not JSON: {text[:40]!r}") from None
    key = choose_key(values) if isinstance(values, dict) else None
    return None if key is None else values[key]


def _check_end(archive: tarfile.TarFile) -> None:
    """Check for the end mark, a block of zeros: tarfile takes a damaged header for the end of the archive."""
    archive.fileobj.seek(archive.offset)  # type: ignore[union-attr]
    block = archive.fileobj.read(tarfile.BLOCKSIZE)  # type: ignore[union-attr]
    if len(block) < tarfile.BLOCKSIZE or any(block):
        raise tarfile.ReadError(f"no end mark at byte {archive.offset}")
