"""Launching Triton kernels: cached launches, launch configurations, and the strides that kernels can read."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from .dispatch import TRITON_INTERPRETS

F = TypeVar("F", bound=Callable[..., Any])
Strides = tuple[int, ...]

# Triton's interpreter keeps the running program's id in a global, so threads must take turns.
_interpreter_lock: contextlib.AbstractContextManager[Any] = (
    threading.RLock() if TRITON_INTERPRETS else contextlib.nullcontext()
)
_caches: list[Any] = []


def cached_by_shape(function: F) -> F:
    """Cache a function of shapes, strides and dtypes, such as one that builds a :class:`Launch`."""
    cached = lru_cache(maxsize=1024)(function)
    _caches.append(cached)
    return cached  # type: ignore[return-value]


def forget_launches() -> None:
    """Clear the caches of :func:`cached_by_shape`, after a change of launch configurations."""
    for cache in _caches:
        cache.cache_clear()


class Launch:
    """A kernel with all its arguments but the pointers, called with the pointers.

    The kernel's signature has pointers first, then numbers, then constants. Triton inspects every argument of every
    call to find the compiled variant that fits, which takes the host longer than the rest of the call. Here only the
    pointers change (dtypes, alignment, device), so the variant is kept per dtype and device and called as Triton's
    tutorials do (``compiled[grid](*arguments)``). Triton's own path is taken for pointers that are not all multiples
    of 16 bytes, on AMD GPUs, where the variant depends on more, and in the interpreter, which compiles nothing.
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
        # Named because Triton 3.10 changes its default; the kernels' instruction counts rest on a*b+c becoming one fma.
        self._options = {**constants, "num_warps": num_warps, "enable_fp_fusion": True, **options}
        self._tail = (*numbers, *(constants[name] for name in kernel.arg_names if name in constants))
        self._compiled: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def __call__(self, *pointers: Tensor | None) -> None:
        """Launch on the device of the first pointer, which must not be None."""
        device = pointers[0].get_device()  # type: ignore[union-attr]
        if device < 0 or device == torch.cuda.current_device():  # Triton launches on the current device
            self._run(device, pointers)
        else:
            with torch.cuda.device(device):
                self._run(device, pointers)

    def _run(self, device: int, pointers: tuple[Tensor | None, ...]) -> None:
        variant: list[Any] = [device]
        addresses = 0
        for pointer in pointers:
            if pointer is None:
                variant.append(None)
            else:
                variant.append(pointer.dtype)
                addresses |= pointer.data_ptr()
        key = tuple(variant)
        aligned = addresses % 16 == 0
        if aligned and key in self._compiled:
            self._compiled[key](*pointers, *self._tail)
            return
        compiled = self.by_triton(pointers)
        if compiled is not None and aligned and torch.version.hip is None:
            self._compiled[key] = compiled[self._grid]

    def by_triton(self, pointers: tuple[Tensor | None, ...]) -> Any:
        """Launch on the current device through Triton's own dispatch and return the compiled kernel.

        The number of arguments is checked here, once per variant: a compiled kernel does not check it.
        """
        if len(pointers) + len(self._tail) != len(self._kernel.arg_names):
            wanted = len(self._kernel.arg_names) - len(self._tail)
            raise TypeError(f"{self._kernel.__name__}: it takes {wanted} pointers, got {len(pointers)}")
        with _interpreter_lock:
            return self._kernel[self._grid](*pointers, *self._numbers, **self._options)


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


# Launch configurations. Each kernel has a function beside it that chooses one by size and GPU family.


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """Options of one launch; kernels that need more to choose subclass it."""

    num_warps: int


@dataclass(frozen=True, kw_only=True)
class RowConfig(LaunchConfig):
    """Launch configuration of a kernel that works on tiles of rows."""

    elements: int
    """Elements of a tile, with its width rounded up to a power of two."""
    columns: int | None = None
    """Width of a tile, a power of two; None for the whole row."""
    min_programs: int = 1
    """Minimum grid size before a program loops over several tiles."""
    max_tiles: int = 1
    """Most tiles that a program loops over."""

    def tile_width(self, D: int) -> int:
        """Return the width of a tile of rows of width D, a power of two."""
        whole = next_power_of_2(D)
        return whole if self.columns is None else min(whole, self.columns)

    def tiling(self, samples: Samples) -> Tiling:
        """Divide samples into tiles; it depends on shapes alone, so sums are grouped the same way every time."""
        columns = self.tile_width(samples.D)
        min_programs = ceil_div(self.min_programs, ceil_div(samples.D, columns))  # per block of columns
        rows = min(max(self.elements // columns, 1), next_power_of_2(max(samples.N, 1)))
        tiles = ceil_div(samples.N, rows)
        wanted = min(samples.B * tiles // min_programs, tiles, self.max_tiles)
        return Tiling(columns, rows, 1 << max(wanted, 1).bit_length() - 1, self.num_warps)


class Tiling(NamedTuple):
    """A launch's tiles, as :meth:`RowConfig.tiling` finds them: all powers of two."""

    columns: int
    rows: int
    iterations: int
    """Tiles of rows per program."""
    num_warps: int

    @property
    def rows_per_program(self) -> int:
        return self.rows * self.iterations


launch_configs: dict[str, Callable[..., Any]] = {}
"""Function that chooses a kernel's configuration, by the kernel's name; filled when the kernels are imported."""
_overrides: dict[str, Any] = {}


def launch_config(kernel: str) -> Callable[[F], F]:
    """Register the decorated function as the one that chooses a kernel's configuration by size.

    Inside :func:`override_config` it returns the configuration given there.
    """

    def decorate(choose: F) -> F:
        if kernel in launch_configs:
            raise ValueError(f"{kernel}: two functions choose its launch configuration")

        @wraps(choose)
        def chosen(*sizes: int) -> Any:
            return _overrides[kernel] if kernel in _overrides else choose(*sizes)

        launch_configs[kernel] = chosen
        return chosen  # type: ignore[return-value]

    return decorate


@contextlib.contextmanager
def override_config(kernel: str, config: Any) -> Iterator[None]:
    """Run a kernel with this configuration inside the block, in every thread; for the tuner and for tests."""
    if kernel not in launch_configs:
        raise ValueError(f"{kernel}: no imported kernel has this name")
    if kernel in _overrides:
        raise RuntimeError(f"{kernel}: its configuration is overridden already")
    _overrides[kernel] = config
    forget_launches()
    try:
        yield
    finally:
        del _overrides[kernel]
        forget_launches()


GPU_FAMILIES = (80, 90)
_assumed_families: list[int] = []


def family_of(architecture: int) -> int:
    """GPU family of a compute capability times ten: 90 for 9.x and 10.x, 80 for all others.

    10.0 has at least the shared memory and matrix instructions of 9.0; 8.6, 8.9 and 12.0 are smaller than 8.0.
    """
    return 90 if architecture // 10 in (9, 10) else 80


def gpu_family() -> int:
    """Family of the GPU in use, or of the assumed one; 80 without either.

    Launches are cached by shape: a process with GPUs of both families keeps those chosen for the first.
    """
    return _assumed_families[-1] if _assumed_families else _detected_family()


@lru_cache(maxsize=1)
def _detected_family() -> int:
    if not torch.cuda.is_available():
        return 80
    major, minor = torch.cuda.get_device_capability()
    return family_of(10 * major + minor)


@contextlib.contextmanager
def assume_architecture(architecture: int) -> Iterator[None]:
    """Choose configurations for a GPU of this architecture (80, 90, ...), to compile for it without one."""
    _assumed_families.append(family_of(architecture))
    forget_launches()
    try:
        yield
    finally:
        _assumed_families.pop()
        forget_launches()


# Strides. Kernels read rows of unit last stride at equal distances, per sample or throughout.


@cached_by_shape
def row_stride(shape: Strides, strides: Strides) -> Any:
    """Return the distance between the rows of ``[..., D]``; None where it varies or the last stride is not 1.

    Without elements it is D, whatever the strides: torch calls such a tensor contiguous.
    """
    if 0 in shape:
        return shape[-1]
    if shape[-1] > 1 and strides[-1] != 1:
        return None
    row, rows = None, 1
    for size, stride in zip(reversed(shape[:-1]), reversed(strides[:-1]), strict=True):
        if size != 1:
            if row is not None and stride != row * rows:
                return None
            row, rows = stride if row is None else row, rows * max(size, 1)
    return shape[-1] if row is None else row


@cached_by_shape
def row_strides(shape: Strides, strides: Strides) -> Any:
    """Return the strides of samples and of rows; None where ``[B, ..., D]`` has no view ``[B, N, D]`` of dense rows.

    Strides of dimensions of size 1 are free and chosen so that the samples follow one another.
    """
    N = math.prod(shape[1:-1])
    if 0 in shape:
        return N * shape[-1], shape[-1]
    row = row_stride(shape[1:], strides[1:])
    if row is None:
        return None
    if N == 1:
        return strides[0], strides[0]
    return strides[0] if shape[0] > 1 else row * N, row


def with_rows(x: Tensor) -> Tensor:
    """Return ``x [B, ..., D]``, copied where its rows do not lie at equal distances inside a sample."""
    if x.is_contiguous():
        return x
    return x.contiguous() if row_strides(x.shape, x.stride()) is None else x.resolve_neg()


def with_even_rows(x: Tensor) -> Tensor:
    """Return ``x [..., D]``, copied where its rows do not all lie at equal distances."""
    if x.is_contiguous():
        return x
    return x.contiguous() if row_stride(x.shape, x.stride()) is None else x.resolve_neg()


@dataclass(frozen=True)
class Samples:
    """``B`` samples of ``N`` rows of width ``D``; with one timestep for all, the batch may count as one sample."""

    B: int
    N: int
    D: int

    @property
    def rows(self) -> int:
        return self.B * self.N

    def chunks(self, rows_per_chunk: int) -> int:
        """Programs per sample; at least 1, since kernels divide by it."""
        return max(ceil_div(self.N, rows_per_chunk), 1)


def as_samples(
    shape: Sequence[int], *strides: Strides | None, shared: bool
) -> tuple[Samples, list[tuple[int, int]]]:  # fmt: skip
    """Return the samples of tensors of one shape, and each tensor's strides of samples and rows; None gives (0, 0).

    ``shared``: one timestep for the batch, so it becomes one sample where the strides allow.
    """
    B, N, D = shape[0], math.prod(shape[1:-1]), shape[-1]
    pairs: list[Any] = [(0, 0) if s is None else row_strides(tuple(shape), s) for s in strides]
    if shared and all(sample == N * row for sample, row in pairs):
        B, N = 1, B * N
    return Samples(B, N, D), pairs
