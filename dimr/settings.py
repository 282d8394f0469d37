"""Strict construction of settings dataclasses from tables of plain values, as TOML and JSON files hold them.

Every table of settings is read through :func:`from_table`, and every settings class calls :func:`check_types` when it
is constructed, so that values given in Python and values read from a file are checked alike.

No validation library does this, for two reasons. ``DiMRConfig`` is read with torch as the only dependency. And the
libraries that were tried fit less well: dacite 1.9 rejects lists for tuple fields and accepts True for an integer;
pydantic 2, in strict mode, accepts lists for tuples only from JSON text, not from what a TOML reader returns, and its
messages (several lines, without the known keys) would have to be written anew.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")

KINDS: dict[Any, str] = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}


def from_table(cls: type[T], table: Mapping[str, Any]) -> T:
    """Construct ``cls``, a dataclass that calls :func:`check_types`, from a table of its fields.

    Raises:
        ValueError: an unknown key, a missing key, or a value that the class rejects.
        TypeError: a value of the wrong type.
    """
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    refuse_unknown(table, [field.name for field in fields])
    for field in fields:
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in table:
            raise ValueError(f"the key {field.name!r} is missing")
    return cls(**table)


def refuse_unknown(table: Mapping[str, Any], known: list[str]) -> None:
    """Raise a ValueError that names the first key that is not ``known``."""
    for key in table:
        if key not in known:
            raise ValueError(f"unknown key {key!r}; known are {', '.join(known)}")


def check_types(settings: Any) -> None:
    """Check a dataclass's values against its annotations, for its ``__post_init__``. Lists become tuples.

    Annotations may be int, float, str, bool and tuples of these, each possibly with ``| None``. An integer is a valid
    float, but True is not a valid integer.

    Raises:
        TypeError: a value of another type, with the field's name and what was expected.
    """
    for name, kind in typing.get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        if typing.get_origin(kind) in (typing.Union, types.UnionType):
            if value is None:
                continue
            kind = next(option for option in typing.get_args(kind) if option is not types.NoneType)
        if typing.get_origin(kind) is tuple:
            object.__setattr__(settings, name, _checked_tuple(name, value, typing.get_args(kind)))
        else:
            _check_value(name, value, kind)


def _check_value(name: str, value: Any, kind: type) -> None:
    if type(value) is not kind and not (kind is float and type(value) is int and abs(value) < 2**1023):
        raise TypeError(f"{name} must be {KINDS[kind]}, got {shown(value)}")


def _checked_tuple(name: str, values: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    any_length = kinds[-1] is Ellipsis
    if not isinstance(values, (list, tuple)) or not (any_length or len(values) == len(kinds)):
        count = "" if any_length else f"{len(kinds)} "
        raise TypeError(f"{name} must be a list of {count}values, got {shown(values)}")
    for i, value in enumerate(values):
        _check_value(f"{name}[{i}]", value, kinds[0] if any_length else kinds[i])
    return tuple(values)


def shown(value: Any) -> str:
    """Return ``repr(value)`` for a message, or the number of bits of an integer too long for Python to print."""
    try:
        if type(value) is not int or value.bit_length() <= 64:
            return repr(value)
    except ValueError:  # an integer of thousands of digits inside a list
        return f"a {type(value).__name__} with an integer of thousands of digits"
    return f"an integer of {value.bit_length()} bits"
