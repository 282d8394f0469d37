"""Data sets of the ``datasets`` library: saved on disk by it, or as parquet files."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from ...utils import first_line, require
from ..dataset import ImageSource, file_stamp
from ..errors import DataError, SampleError
from ..pictures import Decoding, decode_picture
from .labels import as_labels, choose_key

logger = logging.getLogger(__name__)


class HuggingFaceSource(ImageSource):
    """A folder that ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote, or one of parquet files.

    Pictures are in the first column of the type ``Image``, or in ``image_key``; labels in a column with one of the
    usual names, in the only one of the type ``ClassLabel``, or in ``label_key``. The ``datasets`` library converts
    parquet files once, in its cache.

    Args:
        split: required if there are several, except for parquet files with a split "train".
        parquet: the folder holds parquet files.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        split: str | None = None,
        image_key: str | None = None,
        label_key: str | None = None,
        decoding: Decoding | None = None,
        parquet: bool = False,
    ) -> None:
        self.path = Path(path)
        self.decoding = decoding
        if not self.path.is_dir():
            raise FileNotFoundError(f"no folder at {self.path}")
        datasets = require("datasets", "train", "a Hugging Face data set")
        data = self._open_parquet(datasets, split) if parquet else self._open(datasets, split)
        image_key = self._image_key(datasets, data.features, image_key)
        label_key = self._label_key(datasets, data.features, image_key, label_key)
        self.labels = None
        if label_key is not None:
            values = data.select_columns([label_key]).with_format(None)[:][label_key]
            labels = as_labels(values, lambda i: f"{self.path}: {label_key} of row {i}")
            names = getattr(data.features[label_key], "names", None)
            self.labels, self.class_names = labels.ids, labels.names if names is None else tuple(names)
        # Undecoded: picture() decodes them, so that its error can name the row.
        self._pictures = data.select_columns([image_key]).cast_column(image_key, datasets.Image(decode=False))
        self._key = image_key
        self._stamp = "; ".join(file_stamp(Path(file["filename"])) for file in data.cache_files)

    def _open(self, datasets: Any, split: str | None) -> Any:
        try:
            data = datasets.load_from_disk(os.fspath(self.path))
        except Exception as error:  # many types if the files are damaged
            raise DataError(f"{self.path} is not a data set saved by the datasets library: {error}") from error
        if not isinstance(data, datasets.DatasetDict):
            if split is not None:
                raise DataError(f"{self.path} has no splits: leave out split = {split!r}")
            return data
        if split not in data:
            raise DataError(f"split: wanted one of {', '.join(data)} in {self.path}, got {split!r}")
        return data[split]

    def _open_parquet(self, datasets: Any, split: str | None) -> Any:
        try:
            data = datasets.load_dataset("parquet", data_dir=os.fspath(self.path))
        except Exception as error:  # many types if the files are damaged
            reason = first_line(error.__cause__ or error)
            raise DataError(f"{self.path} holds parquet files that cannot be read: {reason}") from error
        split = split or ("train" if "train" in data else None)
        if split not in data:
            raise DataError(f"split: wanted one of {', '.join(data)} in {self.path}, got {split!r}")
        data = data[split]
        for name, kind in data.features.items():  # written by other programs, without the datasets library's types
            if isinstance(kind, dict) and "bytes" in kind:
                data = data.cast_column(name, datasets.Image(decode=False))
        return data

    def _image_key(self, datasets: Any, features: Any, asked: str | None) -> str:
        columns = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
        if not columns or (asked is not None and asked not in columns):
            found = ", ".join(f"{name} ({type(kind).__name__})" for name, kind in features.items())
            raise DataError(f"{self.path} has no column {asked or ''} of the type Image, only {found}")
        return asked or columns[0]

    def _label_key(self, datasets: Any, features: Any, image_key: str, asked: str | None) -> str | None:
        if asked is not None and asked not in features:
            raise DataError(f"{self.path} has no column {asked!r}, only {', '.join(features)}")
        classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
        key = asked or choose_key(features) or (classes[0] if len(classes) == 1 else None)
        others = [name for name in features if name != image_key]
        if key is None and others:
            logger.warning("%s: no labels are read; its columns are %s (label_key names one)", self.path, others)
        return key

    def __len__(self) -> int:
        return len(self._pictures)

    def name(self, index: int) -> str:
        return f"row {index}"

    def stamp(self, index: int) -> str:
        return self._stamp

    def picture(self, index: int) -> Any:
        name = f"{self.path}: {self.name(index)}"
        stored = self._pictures[int(index)][self._key]  # save_to_disk has put the files' bytes into the column
        if not (stored and stored["bytes"]):
            raise SampleError(name, "it holds no picture")
        return decode_picture(stored["bytes"], name, self.decoding)
