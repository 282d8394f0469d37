"""Pictures in a ``.zip`` file, as EDM's and StyleGAN's ``dataset_tool.py`` write them."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ..dataset import ImageSource, file_stamp
from ..errors import DataError, SampleError
from ..pictures import PICTURES, Decoding, decode_picture
from .labels import LABEL_FILES, Labels, from_folders, from_label_file, warn_of_other_files


class ZipSource(ImageSource):
    """A ``.zip`` file of pictures, sorted by name. Labels are in ``dataset.json``; without one, folders are classes."""

    def __init__(self, path: str | os.PathLike[str], decoding: Decoding | None = None) -> None:
        self.path = Path(path)
        self.decoding = decoding
        if not self.path.is_file():
            raise FileNotFoundError(f"no file at {path}")
        self._archive: zipfile.ZipFile | None = None
        try:
            files = [name for name in self._opened().namelist() if _is_shown(name)]
        except Exception as error:  # zipfile raises many types over damage
            raise DataError(f"{path} is not a whole .zip file: {error}") from error
        names = sorted(name for name in files if name.lower().endswith(PICTURES))
        self.labels, self.class_names = self._read_labels(files, names) or (None, None)
        known = {*names, *LABEL_FILES}
        warn_of_other_files(self.path, (name for name in files if name not in known))
        # An array, because counting references to a list's strings would copy its memory in each worker process.
        self._names = np.array([os.fsencode(name) for name in names], dtype=np.bytes_)

    def _read_labels(self, files: list[str], names: list[str]) -> Labels | None:
        listed = [file for file in LABEL_FILES if file in files]
        for file in listed:
            try:
                text = self._opened().read(file)
            except Exception as error:  # zipfile and zlib raise many types over damage
                raise DataError(f"{self.path}: {file} cannot be read: {error}") from error
            labels = from_label_file(text, f"{self.path}: {file}", names)
            if labels is not None:
                return labels
        return None if "dataset.json" in listed else from_folders(names)

    def _opened(self) -> zipfile.ZipFile:
        if self._archive is None:
            self._archive = zipfile.ZipFile(self.path)
        return self._archive

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_archive": None}  # another process opens the file itself

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        return os.fsdecode(self._names[index])

    def stamp(self, index: int) -> str:
        return file_stamp(self.path)

    def picture(self, index: int) -> Any:
        place = f"{self.path}: {self.name(index)}"
        try:
            data = self._opened().read(self.name(index))
        except Exception as error:  # zipfile and zlib raise many types over damage
            raise SampleError(place, str(error) or type(error).__name__) from error
        return decode_picture(data, place, self.decoding)


def _is_shown(name: str) -> bool:
    """Return False for folders, and for the hidden files that macOS adds."""
    return not name.endswith("/") and not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
