"""A value that holds inside a ``with`` block, in eager code and in code that torch.compile traces."""

from __future__ import annotations

import contextvars
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class ScopedValue(Generic[T]):
    """One value with a default; ``with scoped.set_to(v):`` changes it for the block.

    Eager code reads a context variable, so threads and asynchronous tasks do not see each other's values.
    Dynamo traces neither context variables nor thread locals (it does not guard the latter, and would silently
    reuse a graph made for another value), but it guards plain attributes: traced code reads ``traced``.
    """

    def __init__(self, name: str, default: T) -> None:
        self._variable: contextvars.ContextVar[T] = contextvars.ContextVar(name, default=default)
        self.traced: T = default

    def get(self) -> T:
        if torch.compiler.is_compiling():
            return self.traced
        return self._variable.get()

    def set_to(self, value: T) -> ScopedSetting[T]:
        return ScopedSetting(self, value)


class ScopedSetting(Generic[T]):
    """The context manager that ``ScopedValue.set_to`` returns; it can be entered again."""

    def __init__(self, scoped: ScopedValue[T], value: T) -> None:
        self._scoped = scoped
        self._value = value
        self._undo: list[tuple[T, contextvars.Token[T] | None]] = []

    def __enter__(self) -> None:
        scoped = self._scoped
        token = None if torch.compiler.is_compiling() else scoped._variable.set(self._value)
        self._undo.append((scoped.traced, token))
        scoped.traced = self._value

    def __exit__(self, *exception: object) -> None:
        previous, token = self._undo.pop()
        self._scoped.traced = previous
        if token is not None:
            self._scoped._variable.reset(token)
