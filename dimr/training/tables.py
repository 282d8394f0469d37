"""Dataclasses from tables of plain values, strictly: what is wrong is named."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class RecipeError(Exception):
    """A recipe that cannot be used, said in one line that names the place."""


def build(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """The dataclass with the table's values for fields.

    Raises:
        RecipeError: a key that is not a field, a missing field, a value of another type, or one that the class refuses.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    refuse_unknown(table, list(fields), where)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in table:
            raise RecipeError(f"{where}: the key {name!r} is missing")
    kinds = typing.get_type_hints(cls)
    try:
        return cls(**{name: _converted(kinds[name], value, f"{where}.{name}") for name, value in table.items()})
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{where}: {error}") from error


def refuse_unknown(table: Mapping[str, Any], known: list[str], where: str) -> None:
    for name in table:
        if name not in known:
            raise RecipeError(f"{where}: unknown key {name!r}; known are {', '.join(known)}")


def _converted(kind: Any, value: Any, where: str) -> Any:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next(option for option in typing.get_args(kind) if option is not types.NoneType)
    if typing.get_origin(kind) is tuple:
        return _tuple(typing.get_args(kind), value, where)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise RecipeError(f"{where} must be {_NAMES[kind]}, got {value!r}")
    return value


def _tuple(kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    endless = kinds[-1] is Ellipsis
    if not isinstance(value, (list, tuple)) or not (endless or len(value) == len(kinds)):
        count = "" if endless else f"{len(kinds)} "
        raise RecipeError(f"{where} must be a list of {count}values, got {value!r}")
    each = [kinds[0]] * len(value) if endless else kinds
    return tuple(_converted(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(each, value, strict=True)))


_NAMES = {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false"}
