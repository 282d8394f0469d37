"""Triton's interpreter with a guard on memory, and without the programs in the middle of a huge grid."""

from __future__ import annotations

import builtins
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor

Patch = Callable[[Any, str, Any], None]


class OutsideMemory(AssertionError):
    """A kernel accessed an address that belongs to none of the tensors it was given."""


def extent(x: Tensor) -> tuple[int, int]:
    """Return the address of ``x``'s first byte and of the byte after its last."""
    if x.numel() == 0:
        return x.data_ptr(), x.data_ptr()
    last = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()


@contextlib.contextmanager
def guarded_memory(patch: Patch) -> Iterator[list[str]]:
    """Fail on unmasked accesses outside the tensors of their launch. Yields the names of kernels launched."""
    from triton.runtime import interpreter

    launches: list[list[tuple[int, int]]] = []
    kernels: list[str] = []
    run = interpreter.GridExecutor.__call__

    def guarded_run(self: Any, *arguments: Any, **named: Any) -> Any:
        values = (*arguments, *named.values())
        launches.append([extent(x) for x in values if isinstance(x, Tensor)])
        kernels.append(self.fn.__name__)
        try:
            return run(self, *arguments, **named)
        finally:
            launches.pop()

    def check(pointers: Any, mask: np.ndarray) -> None:
        size = pointers.get_element_ty().primitive_bitwidth // 8
        addresses = np.broadcast_to(pointers.data, mask.shape)[mask].astype(np.uint64)
        inside = np.zeros(addresses.shape, dtype=bool)
        for first, end in launches[-1]:
            inside |= (addresses >= first) & (addresses + np.uint64(size) <= end)
        if not inside.all():
            raise OutsideMemory(f"{kernels[-1]}: {int((~inside).sum())} of {inside.size} addresses lie outside")

    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def guarded_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        check(pointers, mask.data)
        return load(self, pointers, mask, *rest)

    def guarded_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        check(pointers, mask.data)
        return store(self, pointers, value, mask, *rest)

    patch(interpreter.GridExecutor, "__call__", guarded_run)
    patch(builder, "create_masked_load", guarded_load)
    patch(builder, "create_masked_store", guarded_store)
    yield kernels


LAST_PROGRAMS = 2
LARGEST_WHOLE_GRID = 4096


def skip_the_middle(patch: Patch) -> None:
    """Run only the first and the last few programs of a grid too large to interpret."""
    from triton.runtime import interpreter

    def programs(*bounds: int) -> Any:
        if len(bounds) == 1 and bounds[0] > LARGEST_WHOLE_GRID:
            return [0, *builtins.range(bounds[0] - LAST_PROGRAMS, bounds[0])]
        return builtins.range(*bounds)

    patch(interpreter, "range", programs)
