"""Data sets that the ``datasets`` library saved on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ...utils import require
from ..dataset import ImageSource
from ..errors import DataError, SampleError
from ..pictures import decode_picture

LABEL_KEYS = ("label", "labels", "fine_label")


class HuggingFaceSource(ImageSource):
    """A folder that ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote; of the latter, one split.

    Pictures are in the first column of the type ``Image``, or in ``image_key``; labels in a column ``label``,
    ``labels`` or ``fine_label``, or in ``label_key``.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        split: str | None = None,
        image_key: str | None = None,
        label_key: str | None = None,
    ) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise FileNotFoundError(f"no folder at {self.path}")
        datasets = require("datasets", "train", "a Hugging Face data set")
        data = self._open(datasets, split)
        image_key = self._image_key(datasets, data.features, image_key)
        label_key = self._label_key(data.features, label_key)
        self.labels = None
        if label_key is not None:
            self.labels = np.array(data.with_format("numpy", [label_key])[:][label_key], np.int64)
            self.class_names = _class_names(data.features[label_key])
        # Undecoded: picture() decodes them, so that its error can name the row.
        self._pictures = data.select_columns([image_key]).cast_column(image_key, datasets.Image(decode=False))
        self._key = image_key

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

    def _image_key(self, datasets: Any, features: Any, asked: str | None) -> str:
        columns = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
        if not columns or (asked is not None and asked not in columns):
            found = ", ".join(f"{name} ({type(kind).__name__})" for name, kind in features.items())
            raise DataError(f"{self.path} has no column {asked or ''} of the type Image, only {found}")
        return asked or columns[0]

    def _label_key(self, features: Any, asked: str | None) -> str | None:
        if asked is not None and asked not in features:
            raise DataError(f"{self.path} has no column {asked!r}, only {', '.join(features)}")
        return asked or next((key for key in LABEL_KEYS if key in features), None)

    def __len__(self) -> int:
        return len(self._pictures)

    def name(self, index: int) -> str:
        return f"row {index}"

    def picture(self, index: int) -> Any:
        name = f"{self.path}: {self.name(index)}"
        stored = self._pictures[int(index)][self._key]  # save_to_disk has put the files' bytes into the column
        if not (stored and stored["bytes"]):
            raise SampleError(name, "it holds no picture")
        return decode_picture(stored["bytes"], name)


def _class_names(feature: Any) -> tuple[str, ...] | None:
    names = getattr(feature, "names", None)
    return None if names is None else tuple(names)
