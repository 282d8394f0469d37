"""Pictures in a folder: one sub-folder for each class (torchvision's ``ImageFolder`` layout), or a file of labels."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..dataset import ImageSource, file_stamp
from ..errors import DataError
from ..pictures import PICTURES, Decoding, decode_picture
from .labels import LABEL_FILES, Labels, from_label_file, warn_of_other_files

logger = logging.getLogger(__name__)

SAMPLING_FILE = "sampling.json"  # what dimr sample leaves beside its pictures
TRAIN_SPLITS = ("train", "training")
SPLITS = (*TRAIN_SPLITS, "val", "valid", "validation", "dev", "test", "testing")


class FolderSource(ImageSource):
    """A folder of pictures. The sub-folders are classes, sorted by name; a folder without any is one class.

    A ``dataset.json`` (EDM, StyleGAN, REPA) or a ``metadata.jsonl`` or ``.csv`` with a column of labels (Hugging Face)
    takes the place of class folders. If all sub-folders are named like splits, the training split is taken.

    Pictures are sorted by class and name and include those in deeper folders. Names that begin with a dot are left
    out; other files are counted in the log.

    Args:
        split: the sub-folder to read.
        label_key: the column of labels in ``metadata.jsonl`` or ``metadata.csv``.
        labelled: False reads the pictures of all folders without classes.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        decoding: Decoding | None = None,
        split: str | None = None,
        label_key: str | None = None,
        labelled: bool = True,
    ) -> None:
        self.root = Path(root)
        self.decoding = decoding
        if not self.root.is_dir():
            raise FileNotFoundError(f"no folder at {self.root}")
        if labelled:
            self.root = _split_folder(self.root, split)
        folders = _folders(self.root)
        files = {"": sorted(_files(self.root, recursive=False))}  # names by sub-folder
        files |= {folder: sorted(f"{folder}/{name}" for name in _files(self.root / folder)) for folder in folders}
        pictures = {folder: [name for name in names if is_picture(name)] for folder, names in files.items()}
        names = [name for part in pictures.values() for name in part]
        labels = self._from_label_file(files[""], names, label_key) if labelled else None
        if labels is None and labelled and folders:
            _check_class_folders(self.root, files, pictures)
            labels = Labels(np.repeat(np.arange(len(folders)), [len(pictures[name]) for name in folders]), folders)
        self.labels, self.class_names = labels or (None, None)
        known = {*names, *LABEL_FILES, SAMPLING_FILE}
        warn_of_other_files(self.root, (name for part in files.values() for name in part if name not in known))
        # An array, because counting references to a list's strings would copy its memory in each worker process.
        self._names = np.array([os.fsencode(name) for name in names], dtype=np.bytes_)

    def _from_label_file(self, there: list[str], names: list[str], label_key: str | None) -> Labels | None:
        for file in LABEL_FILES:
            if file in there:
                path = self.root / file
                labels = from_label_file(path.read_bytes(), str(path), names, label_key)
                if labels is not None:
                    return labels
        if label_key is not None:
            raise DataError(f"label_key: there is no metadata.jsonl or metadata.csv in {self.root}")
        return None

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return os.fsdecode(self._names[index])

    def stamp(self, index: int) -> str:
        return file_stamp(self.root / self.name(index))

    def picture(self, index: int) -> Any:
        path = self.root / self.name(index)
        return decode_picture(path, str(path), self.decoding)


def is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURES)


def _folders(root: Path) -> tuple[str, ...]:
    return tuple(sorted(name for name in os.listdir(root) if (root / name).is_dir() and _shown(name)))


def _files(folder: Path, recursive: bool = True) -> Iterator[str]:
    """List the files: names relative to ``folder``, with forward slashes."""
    seen: set[str] = set()  # a link may lead back up
    for place, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(filter(_shown, folders)) if recursive else ()
        inside = Path(place).relative_to(folder)
        yield from ((inside / name).as_posix() for name in files if _shown(name))


def _shown(name: str) -> bool:
    return not name.startswith(".")


def _split_folder(root: Path, split: str | None) -> Path:
    """Return the folder of ``split``; without one, the training split if all sub-folders are splits, or ``root``."""
    folders = _folders(root)
    if split is not None:
        if split not in folders:
            raise DataError(f"split: wanted one of {', '.join(folders)} in {root}, got {split!r}")
        return root / split
    train = [name for name in folders if name.lower() in TRAIN_SPLITS]
    loose = any(is_picture(name) for name in os.listdir(root))
    if loose or len(folders) < 2 or not all(name.lower() in SPLITS for name in folders):
        return root
    if len(train) != 1:
        raise DataError(f"{root} holds the splits {', '.join(folders)}, which are no classes: give the path of one")
    logger.warning("%s holds the splits %s: reading %s (split names another)", root, ", ".join(folders), train[0])
    return root / train[0]


def _check_class_folders(root: Path, files: dict[str, list[str]], pictures: dict[str, list[str]]) -> None:
    loose = pictures[""]
    if loose:
        raise DataError(f"{root} has pictures beside class folders, the first is {loose[0]}")
    for folder, part in pictures.items():
        if folder and not part:
            found = f"found {files[folder][0]}" if files[folder] else "it is empty"
            raise DataError(f"class folder {root / folder} holds no picture ({', '.join(PICTURES)}): {found}")
