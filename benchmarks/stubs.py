"""Kernels that do nothing, to count and time the host's work without a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch

from dimr_kernels import use_backend
from dimr_kernels.launch import Launch, forget_launches
from dimr_kernels.registration import Operator


class _Compiled:
    """Stands for what Triton compiles: ``compiled[grid](*arguments)`` launches."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return _nothing


def _nothing(*arguments: Any) -> None:
    pass


@contextlib.contextmanager
def _triton_forms_on_cpu() -> Iterator[None]:
    """Run the Triton forms on CPU tensors, without the check of timesteps for NaN, as on a GPU."""
    with (
        mock.patch("dimr_kernels.dispatch.TRITON_INTERPRETS", True),
        mock.patch("dimr_kernels.ops.time_gate.refuse_nan", new=_nothing),
        use_backend("triton"),
    ):
        forget_launches()
        yield
        forget_launches()


@contextlib.contextmanager
def stubbed_launches() -> Iterator[None]:
    """Replace launches by nothing; outputs hold whatever was in their memory."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    def run(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> _Compiled:
        return _Compiled()

    with (
        mock.patch.object(JITFunction, "run", run),
        mock.patch.object(InterpretedFunction, "run", run),
        _triton_forms_on_cpu(),
    ):
        yield


@contextlib.contextmanager
def recorded_calls(owner: type[Launch] | type[Operator]) -> Iterator[list[tuple[Any, tuple[Any, ...]]]]:
    """Record the launches, or the operators, that are called inside the block, with their arguments."""
    calls: list[tuple[Any, tuple[Any, ...]]] = []
    original: Any = owner.__call__

    def call(self: Any, *arguments: Any) -> Any:
        calls.append((self, arguments))
        return original(self, *arguments)

    with mock.patch.object(owner, "__call__", call):
        yield calls


class _Utilities:
    def load_binary(self, *arguments: Any) -> tuple[int, int, int, int, int]:
        return 1, 1, 32, 0, 1024  # module, function, registers, spills, most threads

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448}

    def unload_module(self, module: int) -> None:
        pass


class PretendedGPU:
    """A driver for Triton: an H100 that compiles for itself (truly, with ptxas) and launches nothing.

    ``JITFunction.run`` runs unchanged in front of it. Left out are the two questions to CUDA about the current device
    and stream, and Triton's launcher in C, which reads the pointers and calls ``cuLaunchKernelEx``.
    """

    utils = _Utilities()

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        return _nothing

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_device_interface(self) -> Any:
        return torch.cuda

    def map_python_to_cpp_type(self, name: str) -> str:
        return name


@contextlib.contextmanager
def pretended_gpu() -> Iterator[None]:
    """Use a :class:`PretendedGPU` as Triton's driver inside the block; tensors stay on the CPU."""
    from triton.runtime import driver

    with mock.patch.object(driver, "_active", PretendedGPU()), _triton_forms_on_cpu():
        yield
