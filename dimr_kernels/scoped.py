"""A value that holds inside a ``with`` block, in eager code and in code that torch.compile traces."""

from __future__ import annotations

import contextvars
import threading
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")


class ScopedValue(Generic[T]):
    """One value with a default; ``with scoped.set_to(v):`` changes it for the block.

    Eager code reads a context variable, so threads and asynchronous tasks do not see each other's values.
    Dynamo traces neither context variables nor thread locals (it does not guard the latter, and would silently
    reuse a graph made for another value), but it guards plain attributes: traced code reads ``traced``, the value of
    the block that was entered last and not yet left, by whichever thread.
    """

    def __init__(self, name: str, default: T) -> None:
        self._default = default
        # The blocks around this code: (value, the blocks around that one), or None.
        self._blocks: contextvars.ContextVar[Any] = contextvars.ContextVar(name, default=None)
        self._of_all_threads: list[Any] = []
        self._lock = threading.Lock()
        self.traced: T = default

    def get(self) -> T:
        if torch.compiler.is_compiling():
            return self.traced
        blocks = self._blocks.get()
        return self._default if blocks is None else blocks[0]

    def set_to(self, value: T) -> ScopedSetting[T]:
        return ScopedSetting(self, value)

    def _enter(self, value: T) -> None:
        block = value, self._blocks.get()
        self._blocks.set(block)
        with self._lock:
            self._of_all_threads.append(block)
            self.traced = value

    def _leave(self) -> None:
        block = self._blocks.get()
        self._blocks.set(block[1])
        with self._lock:  # threads leave their blocks in any order
            self._of_all_threads = [other for other in self._of_all_threads if other is not block]
            self.traced = self._of_all_threads[-1][0] if self._of_all_threads else self._default


class ScopedSetting(Generic[T]):
    """The context manager that ``ScopedValue.set_to`` returns; it can be entered again, and by several threads."""

    def __init__(self, scoped: ScopedValue[T], value: T) -> None:
        self._scoped = scoped
        self._value = value
        self._traced_before: list[T] = []

    def __enter__(self) -> None:
        scoped = self._scoped
        if torch.compiler.is_compiling():
            self._traced_before.append(scoped.traced)
            scoped.traced = self._value
        else:
            scoped._enter(self._value)

    def __exit__(self, *exception: object) -> None:
        if torch.compiler.is_compiling():
            self._scoped.traced = self._traced_before.pop()
        else:
            self._scoped._leave()
