"""Pictures in a folder: one sub-folder for each class (torchvision's ``ImageFolder`` layout), or no classes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ..dataset import ImageSource
from ..errors import DataError
from ..pictures import PICTURES, decode_picture


class FolderSource(ImageSource):
    """A folder of pictures. The sub-folders are classes, sorted by name; a folder without any is one class.

    Pictures are sorted by name and include those in deeper folders. Names that begin with a dot are left out.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise FileNotFoundError(f"no folder at {self.root}")
        classes = sorted(name for name in os.listdir(self.root) if (self.root / name).is_dir() and _shown(name))
        loose = _pictures(self.root, recursive=False)
        if classes and loose:
            raise DataError(f"{self.root} has pictures beside class folders, the first is {loose[0]}")
        if classes:
            names = [[f"{label}/{name}" for name in _pictures(self.root / label)] for label in classes]
            self.class_names = tuple(classes)
            self.labels = np.repeat(np.arange(len(classes)), [len(part) for part in names])
            _refuse_empty(self.root, classes, names)
        else:
            names, self.labels = [loose], None
        # An array, because counting references to a list's strings would copy its memory in each worker process.
        self._names = np.array([os.fsencode(name) for part in names for name in part], dtype=np.bytes_)

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return os.fsdecode(self._names[index])

    def picture(self, index: int) -> Any:
        path = self.root / self.name(index)
        return decode_picture(path, str(path))


def _pictures(folder: Path, recursive: bool = True) -> list[str]:
    """List the pictures: names relative to ``folder``, with forward slashes."""
    found: list[str] = []
    seen: set[str] = set()  # a link may lead back up
    for place, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(filter(_shown, folders)) if recursive else ()
        inside = Path(place).relative_to(folder)
        found += [(inside / name).as_posix() for name in files if _shown(name) and name.lower().endswith(PICTURES)]
    return sorted(found)


def _shown(name: str) -> bool:
    return not name.startswith(".")


def _refuse_empty(root: Path, classes: list[str], names: list[list[str]]) -> None:
    empty = [label for label, part in zip(classes, names, strict=True) if not part]
    if empty:
        raise DataError(f"class folder {root / empty[0]} holds no picture ({', '.join(PICTURES)})")
