"""The names of a model's classes, and the ids of the classes that a user asks for by id or name."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from pathlib import Path

from ..utils import read_json, write_json

logger = logging.getLogger(__name__)

FILE = "class_names.json"  # in a checkpoint folder: a list of names
TRAINED_FILE = "trained_classes.json"  # beside it, if the data had not all classes: a list of ids
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


def save_classes(names: Sequence[str] | None, trained: Sequence[int], num_classes: int, checkpoint: Path) -> None:
    """Write what a checkpoint folder says of its classes: their names, if known, and which of them were trained."""
    if names is not None:
        save_class_names([*names, *(f"untrained class {i}" for i in range(len(names), num_classes))], checkpoint)
    if len(trained) < num_classes:
        write_json(checkpoint / TRAINED_FILE, list(trained))
    else:
        (checkpoint / TRAINED_FILE).unlink(missing_ok=True)


def find_trained_classes(num_classes: int, checkpoint: Path) -> list[int]:
    """Read the ids of the classes that the model in the checkpoint folder was trained on."""
    file = checkpoint / TRAINED_FILE
    if not file.is_file():
        return list(range(num_classes))
    try:
        ids = read_json(file)
    except ValueError as error:
        raise ClassNameError(f"{file} cannot be read: {error}") from error
    fits = isinstance(ids, list) and ids and all(type(i) is int and 0 <= i < num_classes for i in ids)
    if not fits:
        raise ClassNameError(f"{file}: wanted a list of class ids from 0 to {num_classes - 1}")
    return ids


def ranges(ids: Sequence[int]) -> str:
    """Shorten sorted ids for a message: ``"0, 3 to 9"``."""
    parts: list[list[int]] = []
    for i in ids:
        if parts and parts[-1][-1] == i - 1:
            parts[-1].append(i)
        else:
            parts.append([i])
    shown = [str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}" for part in parts]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")


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


def class_ids(
    asked: Sequence[str],
    num_classes: int,
    names: Sequence[str] | None,
    trained: Sequence[int] | None = None,
    unconditional: bool = False,
) -> list[int]:
    """Return the ids of classes given as an id, a name, ``all``, ``none``, or several of these separated by commas.

    Args:
        trained: the classes that ``all`` stands for; None for every class.
        unconditional: the model has an unconditional class, ``none``, whose id is ``num_classes``.
    """
    every = range(num_classes) if trained is None else trained
    lowered = [] if names is None else [name.lower() for name in names]
    found: list[int] = []
    for text in asked:
        for part in [text] if text.strip().lower() in lowered else text.split(","):
            part = part.strip()
            if part == "all":
                found += every
            elif part == "none" and "none" not in lowered:
                if not unconditional:
                    raise ClassNameError("none: this model has no unconditional class")
                found.append(num_classes)
            else:
                found.append(class_id(part, num_classes, names))
    return found


def class_id(text: str, num_classes: int, names: Sequence[str] | None) -> int:
    """Return the id of a class given as an id, as a name in any case, or as ``id:NUMBER``.

    If classes are named by numbers other than their ids, a bare number is a name.
    """
    number_text = text.removeprefix("id:")
    try:
        number = int(number_text)
    except ValueError:
        return _id_of_name(text, names)
    if number_text == text and names is not None and _named_by_other_numbers(names):
        try:
            return _id_of_name(text, names)
        except ClassNameError as error:
            raise ClassNameError(f"{error}; the class with that id is id:{text}") from None
    if not 0 <= number < num_classes:
        raise ClassNameError(f"this model has classes 0 to {num_classes - 1}, got {number}")
    return number


def _named_by_other_numbers(names: Sequence[str]) -> bool:
    return any(name.isdecimal() and len(name) < 19 and int(name) != i for i, name in enumerate(names))


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
