"""Labels in the forms that data sets write them, and the class ids they stand for."""

from __future__ import annotations

import collections
import csv
import io
import json
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...settings import shown
from ..errors import DataError

logger = logging.getLogger(__name__)

# Names of columns and arrays that hold labels, in order of preference; arr_1 is that of ADM's evaluation suite.
LABEL_KEYS = (
    "label", "labels", "fine_label", "class", "class_id", "class_label", "classes", "cls", "y", "target", "targets",
    "arr_1", "label_arr", "category",
)  # fmt: skip
WANTED = "wanted a class id (a whole number of at least 0) or a class name"
LABEL_FILES = ("dataset.json", "metadata.jsonl", "metadata.csv")


class Labels(NamedTuple):
    """Class ids, int64 ``[N]``, and the names of the classes if the labels are text."""

    ids: np.ndarray
    names: tuple[str, ...] | None = None


def choose_key(keys: Iterable[str]) -> str | None:
    """Return the key that holds labels by its name; None if there is none."""
    there = set(keys)
    return next((key for key in LABEL_KEYS if key in there), None)


def as_labels(values: Any, place: Callable[[int], str]) -> Labels:
    """Convert labels to class ids.

    Labels are whole numbers, text (then classes are sorted by name; but digits are ids), one-hot rows, or lists of one
    label.

    Args:
        values: an array or a sequence, one label for each sample.
        place: names the place of a label in messages.

    Raises:
        DataError: a label is none of these.
    """
    array = values if isinstance(values, np.ndarray) else None
    if array is None or array.dtype.kind not in "iuf":
        plain = [_unpacked(value) for value in values]
        if any(isinstance(value, str) for value in plain):
            return _named(plain, place)
        array = _numeric(plain, place)
    if array.ndim == 2 and array.shape[1] > 1:
        return Labels(_one_hot(array, place))
    array = array.reshape(len(array), -1)[:, 0] if array.ndim == 2 else array
    if array.ndim != 1:
        raise DataError(f"{place(0)}: labels have shape {list(array.shape)}; wanted one for each sample")
    if array.dtype.kind == "f":
        odd = np.flatnonzero(~(np.isfinite(array) & (array == np.floor(array))))
        if len(odd):
            raise DataError(f"{place(int(odd[0]))} is {array[odd[0]]}; {WANTED}")
    return Labels(array.astype(np.int64))


def _unpacked(value: Any) -> Any:
    """Return a plain value: text for bytes, the item of a list of one."""
    if isinstance(value, (list, tuple, np.ndarray)) and len(value) == 1:
        return _unpacked(value[0])
    if isinstance(value, np.generic):
        value = value.item()
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _named(values: list[Any], place: Callable[[int], str]) -> Labels:
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise DataError(f"{place(i)} is {_short(value)}, where others are text; {WANTED}")
        if not value.strip() or "\ufffd" in value or (_is_number(value) and not _is_id(value)):
            raise DataError(f"{place(i)} is {_short(value)}; {WANTED}")
    if all(map(_is_id, values)):
        return Labels(np.array([int(value) for value in values], np.int64))
    names, ids = np.unique(np.array([value.strip() for value in values]), return_inverse=True)
    return Labels(ids.astype(np.int64).reshape(-1), tuple(map(str, names)))


def _is_id(text: str) -> bool:
    return text.strip().isascii() and text.strip().isdigit() and len(text) < 19


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _short(value: Any, limit: int = 80) -> str:
    text = shown(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def _numeric(values: list[Any], place: Callable[[int], str]) -> np.ndarray:
    rows = [isinstance(value, (list, tuple, np.ndarray)) for value in values]
    for i, value in enumerate(values):
        number = type(value) in (int, float) and (value != value or abs(value) < 2**63)
        if not (number or (rows[i] and all(rows) and 0 < len(value) == len(values[0]))):
            raise DataError(f"{place(i)} is {_short(value)}; {WANTED}")
    try:
        array = np.array(values)
    except (ValueError, OverflowError):
        array = np.array([None])
    if array.dtype.kind not in "iuf":
        raise DataError(f"{place(0)} is {_short(values[0])}; {WANTED}")
    return array


def _one_hot(rows: np.ndarray, place: Callable[[int], str]) -> np.ndarray:
    whole = ((rows == 0) | (rows == 1)).all(1) & (rows.sum(1) == 1)
    odd = np.flatnonzero(~whole)
    if len(odd):
        raise DataError(f"{place(int(odd[0]))} is a list of {rows.shape[1]} values that is not one-hot; {WANTED}")
    return rows.argmax(1).astype(np.int64)


def from_folders(names: Sequence[str]) -> Labels | None:
    """Take folders for classes: the first ones below the folders that all the files share.

    Returns:
        None if a file is in none of them, or there is only one.
    """
    folders = [name.removeprefix("./").split("/")[:-1] for name in names]
    first, last = min(folders, default=[]), max(folders, default=[])
    depth = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    if not folders or any(len(path) <= depth for path in folders):
        return None
    classes, ids = np.unique(np.array([path[depth] for path in folders]), return_inverse=True)
    return Labels(ids.astype(np.int64), tuple(map(str, classes)))


def from_label_file(text: bytes, file: str, names: Sequence[str], label_key: str | None = None) -> Labels | None:
    """Read the labels of the files ``names`` from one of :data:`LABEL_FILES`.

    ``dataset.json`` is that of EDM, StyleGAN and REPA, ``{"labels": [["00000/img00000000.png", 3], ...]}``;
    ``metadata.jsonl`` and ``metadata.csv`` are those of Hugging Face's image folders, with a ``file_name`` in each row.

    Args:
        file: the path, for messages; its ending decides what is read.
        names: relative to the folder of ``file``.

    Returns:
        None if the file holds no labels.

    Raises:
        DataError: it cannot be read, or has no label for one of ``names``.
    """
    by_name = labels_by_name(text, file, label_key)
    if by_name is None:
        return None
    unlabelled = [name for name in names if name not in by_name]
    if unlabelled:
        raise DataError(f"{file} has no label for {len(unlabelled)} of {len(names)} pictures, first {unlabelled[0]}")
    extra = len(by_name) - len(names)
    if extra > 0:
        there = set(names)
        first = next(name for name in by_name if name not in there)
        raise DataError(f"{file} lists {extra} pictures that are not there, first {first}")
    return as_labels([by_name[name] for name in names], lambda i: f"{file}: the label of {names[i]}")


def labels_by_name(text: bytes, file: str, label_key: str | None = None) -> dict[str, Any] | None:
    """Read one of :data:`LABEL_FILES` as it is: the label of each file's name; None if it holds no labels.

    Raises:
        DataError: it cannot be read.
    """
    try:
        pairs = _pairs(text.decode("utf-8-sig" if file.endswith(".csv") else "utf-8"), file, label_key)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, csv.Error) as error:
        raise DataError(f"{file} cannot be read: {type(error).__name__}: {error}") from error
    return None if pairs is None else {name.replace("\\", "/").removeprefix("./"): label for name, label in pairs}


def _pairs(text: str, file: str, label_key: str | None) -> list[tuple[str, Any]] | None:
    """Parse a label file to pairs of a file's name and its label; None if it has no labels."""
    if file.endswith("dataset.json"):
        content = json.loads(text)
        if "labels" not in content:
            logger.warning("%s is not used: it has no list of labels", file)
        labels = content.get("labels")
        return None if labels is None else [(str(name), label) for name, label in labels]
    if file.endswith(".csv"):
        rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(text)))
    else:
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    keys = list(rows[0]) if rows else []
    key = label_key or choose_key(keys)
    if key not in keys:
        if label_key is not None:
            raise ValueError(f"it has no column {label_key!r}, only {', '.join(keys)}")
        logger.warning("%s has no column that is known to hold labels, only %s; label_key names one", file, keys)
        return None
    return [(str(row["file_name"]), row[key]) for row in rows]


def warn_of_other_files(place: object, names: Iterable[str]) -> None:
    """Log how many files are passed over, by ending, with the first name of them."""
    others = sorted(names)
    if not others:
        return
    endings = collections.Counter(os.path.splitext(name)[1].lower() or "no ending" for name in others)
    counts = ", ".join(f"{count} {ending}" for ending, count in sorted(endings.items()))
    logger.warning("%s: passed over files that are not read as pictures (%s), first %s", place, counts, others[0])
