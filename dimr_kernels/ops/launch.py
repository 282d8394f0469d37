"""What every Triton launcher shares: the launch itself, block sizes, the description of a compiled configuration."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..dispatch import TRITON_INTERPRETS

# Triton's interpreter keeps the number of the running program in one place for all threads.
_turn: contextlib.AbstractContextManager[Any] = threading.RLock() if TRITON_INTERPRETS else contextlib.nullcontext()

TRITON_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
}


F = TypeVar("F", bound=Callable[..., Any])
_caches: list[Any] = []


def cached_by_shape(function: F) -> F:
    """For what depends on shapes, strides and dtypes alone, such as a :class:`Launch`: worked out once for each."""
    cached = lru_cache(maxsize=1024)(function)
    _caches.append(cached)
    return cached  # type: ignore[return-value]


def forget_launches() -> None:
    """Work everything out again, after a change of launch configurations."""
    for cache in _caches:
        cache.cache_clear()


class Launch:
    """A kernel with all its arguments but the pointers. In its signature they come first, then numbers, then constants.

    Triton looks at every argument of every call to find which of its compiled forms fits, which takes the host longer
    than the rest of the call. Here only the pointers change: their dtypes, their alignment, the device. What Triton
    compiled for them is kept and called as Triton's tutorials do (``compiled[grid](*arguments)``). Pointers that are
    not all multiples of 16 bytes go Triton's usual way, and so does everything on AMD's GPUs, where the compiled form
    depends on more, and in the interpreter, which compiles nothing.
    """

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        numbers: tuple[float, ...],
        constants: Mapping[str, Any],
        num_warps: int = 4,
        **options: Any,
    ) -> None:
        self._kernel = kernel
        self._grid = (*grid, 1, 1)[:3]
        self._numbers = numbers
        self._options = {**constants, "num_warps": num_warps, **options}
        self._tail = (*numbers, *(constants[name] for name in kernel.arg_names if name in constants))
        self._compiled: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def __call__(self, *pointers: Tensor | None) -> None:
        """The first pointer is not None."""
        device = pointers[0].get_device()  # type: ignore[union-attr]
        if device < 0 or device == torch.cuda.current_device():  # Triton launches on the current device
            self._run(device, pointers)
        else:
            with torch.cuda.device(device):
                self._run(device, pointers)

    def _run(self, device: int, pointers: tuple[Tensor | None, ...]) -> None:
        form: list[Any] = [device]
        addresses = 0
        for pointer in pointers:
            if pointer is None:
                form.append(None)
            else:
                form.append(pointer.dtype)
                addresses |= pointer.data_ptr()
        key = tuple(form)
        aligned = addresses % 16 == 0
        if aligned and key in self._compiled:
            self._compiled[key](*pointers, *self._tail)
            return
        compiled = self.by_triton(pointers)
        if compiled is not None and aligned and torch.version.hip is None:
            self._compiled[key] = compiled[self._grid]

    def by_triton(self, pointers: tuple[Tensor | None, ...]) -> Any:
        """Launch on the current device in Triton's usual way; returns what Triton compiled."""
        with _turn:
            return self._kernel[self._grid](*pointers, *self._numbers, **self._options)


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class KernelCase:
    """One configuration of one kernel, enough to compile it without a GPU (see ``static_analysis``)."""

    name: str
    kernel: Any
    """The ``triton.jit`` function."""
    signature: Mapping[str, str]
    """Run-time arguments in order: name -> Triton type ("*bf16", "i32", "fp32")."""
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    aligned: frozenset[str] = field(default_factory=frozenset)
    """Arguments known to be multiples of 16 (bytes, for pointers), which allows 16-byte accesses."""
    outputs_per_program: int = 0
    """Elements that one program writes; 0 where the figure means nothing."""
    outputs_per_turn: int = 0
    """Elements that one program finishes per turn of its longest loop; 0 where the figure means nothing."""
    turns: int = 1
    """How many turns each innermost loop takes, where that is fixed when the kernel is compiled."""
    bytes_per_output: float = 0.0
    """Moved to and from memory for each of those elements, at the least."""
