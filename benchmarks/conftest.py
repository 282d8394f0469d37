"""The ``measure`` fixture: time one workload in one implementation and record what the figure means."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import dimr_kernels as dk
from dimr_kernels.dispatch import why_unavailable

from . import timing
from .workload import Workload, differentiable, outputs_of

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["torch"] = torch.__version__
    machine_info["device"] = torch.cuda.get_device_name() if DEVICE.type == "cuda" else platform.processor() or "cpu"
    machine_info["threads"] = torch.get_num_threads()


@pytest.fixture(scope="session")
def device() -> torch.device:
    return DEVICE


@pytest.fixture(scope="session")
def dtype() -> torch.dtype:
    return DTYPE


@pytest.fixture(scope="session")
def copy_ceiling() -> float:
    return timing.copy_bandwidth(DEVICE)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def implementation_of(workload: Workload, implementation: str) -> tuple[Workload, str]:
    """The workload to call and the backend to call it under; skips, with the reason, what cannot run here."""
    if implementation == "fused":
        problem = why_unavailable(workload.fused, DEVICE, DTYPE)
        if problem is None and workload.fused == "triton" and DEVICE.type == "cpu":
            problem = "Triton's interpreter is not worth timing"
        if problem is not None:
            pytest.skip(f"{workload.operator}: no fused form here: {problem}")
        return workload, workload.fused
    if implementation == "compiled":
        torch._dynamo.reset()
        compiled = torch.compile(workload.function, fullgraph=True)
        return replace(workload, function=compiled), "eager"
    # A name that is no rival of every operator ("flash", "cudnn") is a choice inside the function itself.
    return workload, "eager" if implementation == "eager" else "auto"


def one_call(workload: Workload, direction: str) -> Callable[[], object]:
    """A call on inputs of its own. Backward times the gradients alone: the forward has run, its graph is kept."""
    inputs = workload.make_inputs()
    if direction == "forward":

        def forward() -> object:
            with torch.no_grad():
                return workload.function(**inputs)

        return forward
    outputs = outputs_of(workload, inputs)
    cotangents = [torch.randn_like(out) for out in outputs]
    leaves = differentiable(inputs)
    return lambda: torch.autograd.grad(outputs, leaves, cotangents, retain_graph=True)


def error_against_float64(workload: Workload) -> float:
    """Largest difference from the eager definition in float64, relative to the largest value."""
    inputs = workload.make_inputs()
    exact = {
        name: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for name, x in inputs.items()
    }
    with torch.no_grad():
        outputs = outputs_of(workload, inputs)
        with dk.use_backend("eager"):
            truths = outputs_of(workload, exact)
    return max(((o - t).abs().max() / t.abs().max()).item() for o, t in zip(outputs, truths, strict=True))


@pytest.fixture
def measure(benchmark: Any, copy_ceiling: float) -> Callable[[Workload, str, str], None]:
    def run(workload: Workload, implementation: str, direction: str) -> None:
        moved = workload.forward_bytes if direction == "forward" else workload.backward_bytes
        timed, backend = implementation_of(workload, implementation)
        with dk.use_backend(backend):
            calls = [one_call(timed, direction) for _ in range(timing.copies_to_rotate(moved, DEVICE))]
            rotation = itertools.cycle(calls)

            def target() -> None:
                next(rotation)()
                timing.synchronise(DEVICE)

            benchmark.group = f"{workload.operator} {direction}"
            benchmark.pedantic(target, rounds=timing.ROUNDS, warmup_rounds=max(timing.WARMUP_ROUNDS, len(calls)))
            info = benchmark.extra_info
            seconds = benchmark.stats.stats.median
            if DEVICE.type == "cuda":
                seconds = timing.kernel_seconds(calls)
                info["kernel_us"] = seconds * 1e6
            if direction == "forward":
                # The function as it is: a compiled one would compile again for another set of shapes or dtypes.
                info["relative_error_float64"] = error_against_float64(workload)
        info |= {
            "implementation": implementation,
            "direction": direction,
            "dtype": str(DTYPE),
            "bytes": moved,
            "gigabytes_per_second": moved / seconds / 1e9,
            "fraction_of_copy": moved / seconds / copy_ceiling,
        }
        if workload.flops and direction == "forward":
            info["gigaflops_per_second"] = workload.flops / seconds / 1e9

    return run
