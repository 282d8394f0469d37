"""Triton without a GPU: kernels are compiled for one, and what was compiled runs here, on CPU tensors.

Inside :func:`compiled_kernels` a launch goes its usual way, ``kernel[grid](...)`` or a kept ``compiled[grid](...)``, up
to the driver. There, where NVIDIA's would hand machine code to the GPU, the PTX is run instead. ptxas is not called.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.machine_code.architectures import ARCHITECTURES

from .global_memory import Span
from .launch import Argument, Outcome, Pointer, load, run
from .values import Approximation

SCRATCH_POINTERS = 2
"""Parameters that Triton adds to every kernel: scratch memory, which the kernels here do without."""


@dataclass(frozen=True)
class Launched:
    kernel: str
    grid: tuple[int, int, int]
    threads: int
    outcome: Outcome


@dataclass
class Executor:
    """Record of the launches of a block, and how they run."""

    architecture: int = 80
    approximation: Approximation = field(default_factory=Approximation)
    edit: Callable[[str], str] | None = None
    """Changes every kernel's PTX before it runs: for tests of what a changed kernel does."""
    launches: list[Launched] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    """The PTX of the latest launch of each kernel, as compiled."""


@contextlib.contextmanager
def compiled_kernels(architecture: int = 80, **settings: Any) -> Iterator[Executor]:
    """Inside the block Triton's launches run the PTX for ``architecture`` on CPU tensors."""
    from triton import knobs
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.runtime.driver import driver

    executor = Executor(architecture, **settings)
    # Triton's cache holds these kernels in a folder of their own: in place of machine code they have their PTX.
    cache = str(Path(knobs.cache.dir) / "ptx")
    with (
        mock.patch.object(driver, "_active", _Driver(executor)),
        mock.patch.object(CUDABackend, "make_cubin", _keep_ptx),
        mock.patch.object(knobs.cache, "dir", cache),
    ):
        yield executor


def _keep_ptx(backend: Any, text: str, *rest: Any) -> bytes:
    return text.encode()


class _Driver:
    """The part of a driver that Triton's runtime asks for."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.utils = _Utilities()

    def get_current_device(self) -> int:
        return self._executor.architecture  # Triton keeps compiled kernels by device: one for each architecture

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._executor.architecture, 32)

    def get_device_interface(self) -> Any:
        return torch.cuda

    def map_python_to_cpp_type(self, name: str) -> str:
        return name

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        kinds = [source.signature[name] for name in source.fn.arg_names]

        def launch(
            x: int, y: int, z: int, stream: int, text: str, packed: Any, data: Any, enter: Any, leave: Any, *given: Any
        ) -> None:
            from triton.runtime.driver import driver

            # A compiled kernel outlives the block it was first launched in: the driver in force has the executor.
            active = driver.active
            if not isinstance(active, _Driver):
                raise RuntimeError("a kernel compiled for CPU tensors was launched outside of compiled_kernels()")
            active.run(text, (x, y, z), list(source.fn.arg_names), kinds, given, metadata.shared)

        return launch

    def run(
        self, text: str, grid: tuple[int, int, int], names: list[str], kinds: list[Any], given: Any, shared: int
    ) -> None:
        if len(given) != len(names):
            raise TypeError(f"a kernel of {len(names)} arguments was launched with {len(given)}")
        executor = self._executor
        arguments: list[Argument] = []
        tensors: list[Span] = []
        for name, kind, value in zip(names, kinds, given, strict=True):
            if kind == "constexpr":
                continue
            if not isinstance(kind, str):
                raise NotImplementedError(f"argument {name}: a tuple")
            if kind.startswith("*"):
                arguments.append(Pointer(value.data_ptr()))
                tensors.append(
                    Span(name, value.data_ptr(), tuple(value.shape), tuple(value.stride()), value.element_size())
                )
            else:
                arguments.append(value)
        code = load(text if executor.edit is None else executor.edit(text))
        executor.texts[code.program.name] = text
        arguments += [Pointer(0)] * SCRATCH_POINTERS
        outcome = run(code, grid, arguments, shared, tensors, executor.approximation)
        executor.launches.append(Launched(code.program.name, grid, code.program.threads, outcome))


class _Utilities:
    """A module of C functions in Triton's own driver."""

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[Any, str, int, int, int]:
        """Module, function, registers, spills, and the most threads of a block."""
        return None, binary.decode(), 0, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": ARCHITECTURES[device].shared_per_block, "multiprocessor_count": 108}

    def unload_module(self, module: Any) -> None:
        pass
