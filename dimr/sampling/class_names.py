"""The names of a model's classes, and the ids of the classes that a user asks for by id or name."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from pathlib import Path

from ..utils import read_json, write_json

logger = logging.getLogger(__name__)

FILE = "class_names.json"  # in a checkpoint folder: a list of names
IMAGENET_CLASSES = 1000
SUGGESTIONS = 3


class ClassNameError(ValueError):
    """An unknown class, or class names that cannot be read."""


def find_class_names(num_classes: int, checkpoint: Path, file: Path | None = None) -> list[str] | None:
    """Read the names of classes 0, 1, ... from ``file``, the checkpoint folder or, for 1000 classes, torchvision.

    Args:
        file: one name a line, or a JSON list of names.

    Returns:
        The names, or None if there are none.
    """
    if file is None and (checkpoint / FILE).is_file():
        file = checkpoint / FILE
    if file is not None:
        names = _read(file)
        if len(names) != num_classes:
            raise ClassNameError(f"{file}: wanted {num_classes} class names, one for each class, found {len(names)}")
        return names
    return _imagenet_names() if num_classes == IMAGENET_CLASSES else None


def _imagenet_names() -> list[str] | None:
    try:
        from torchvision.models import ResNet50_Weights
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision was built for another torch
        logger.debug("ImageNet's class names come with torchvision, which cannot be imported: %s", error)
        return None
    return list(ResNet50_Weights.DEFAULT.meta["categories"])


def save_class_names(names: Sequence[str], checkpoint: Path) -> None:
    """Write the names to the checkpoint folder, where :func:`find_class_names` looks for them."""
    write_json(checkpoint / FILE, list(names))


def _read(file: Path) -> list[str]:
    try:
        if file.suffix.lower() == ".json":
            names = read_json(file)
        else:
            names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:  # UnicodeDecodeError is one
        raise ClassNameError(f"{file}: class names cannot be read: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise ClassNameError(f"{file}: wanted one class name a line, or a JSON list of names")
    return names


def class_ids(asked: Sequence[str], num_classes: int, names: Sequence[str] | None) -> list[int]:
    """Return the ids of classes given as ``"all"``, an id, a name, or several of these separated by commas."""
    found: list[int] = []
    for text in asked:
        whole = names is not None and text.strip().lower() in (name.lower() for name in names)
        for part in [text] if whole else text.split(","):
            found += range(num_classes) if part.strip() == "all" else [class_id(part.strip(), num_classes, names)]
    return found


def class_id(text: str, num_classes: int, names: Sequence[str] | None) -> int:
    """Return the id of a class given as a number or as a name in any case."""
    try:
        number = int(text)
    except ValueError:
        return _id_of_name(text, names)
    if not 0 <= number < num_classes:
        raise ClassNameError(f"this model has classes 0 to {num_classes - 1}, got {number}")
    return number


def _id_of_name(text: str, names: Sequence[str] | None) -> int:
    if names is None:
        raise ClassNameError(f"wanted class ids such as 0,1,2, got {text!r}; names need --class-names FILE")
    lowered = [name.lower() for name in names]
    found = [i for i, name in enumerate(lowered) if name == text.lower()]
    if len(found) > 1:
        raise ClassNameError(f"{text!r} names several classes: {', '.join(map(str, found))}; give an id")
    if not found:
        near = difflib.get_close_matches(text.lower(), lowered, SUGGESTIONS)
        hint = f"; similar: {', '.join(repr(names[lowered.index(name)]) for name in near)}" if near else ""
        raise ClassNameError(f"no class is named {text!r}{hint}")
    return found[0]
