"""Measurements of a workload in one implementation and direction, and their records."""

from __future__ import annotations

import functools
import itertools
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import dimr_kernels as dk
from tests.support.parity import assert_parity

from . import timing
from .rivals import Unavailable, resolve
from .shapes import Shapes
from .workload import (
    FORWARD_BACKWARD,
    Direction,
    Rival,
    Workload,
    as_tuple,
    bind,
    first_samples,
    with_both_directions,
)

# A parity check and an error against float64 look at so many samples that inputs and outputs have
# this many elements.
CHECKED_ELEMENTS = {"cuda": 1 << 25, "cpu": 1 << 21}
AUTOTUNED_SCOPE = "target"  # elsewhere its tuning would take longer than all other measurements together


@dataclass(frozen=True)
class Case:
    scope: str
    workload: Workload
    implementation: str
    direction: str

    def __str__(self) -> str:
        # "-k 'not compiled'" leaves out both ways to compile.
        compiled = "compiled-" if self.implementation == "max-autotune" else ""
        parts = self.workload.operator, self.scope, self.workload.shape, compiled + self.implementation, self.direction
        return "-".join(parts).replace(" ", "")


def cases(
    shapes: Shapes,
    make: Callable[[Any, torch.dtype, torch.device], Workload],
    choice: str | None,
    dtype: torch.dtype,
    device: torch.device,
) -> list[Case]:
    """Every scope, shape, implementation and direction that was asked for; on a CPU with both directions at once."""
    found = []
    for scope, shape in shapes.select(choice, device.type):
        workload = make(shape, dtype, device)
        if device.type == "cpu":
            workload = with_both_directions(workload)
        for implementation in workload.implementations:
            if implementation == "max-autotune" and scope != AUTOTUNED_SCOPE:
                continue
            found += [Case(scope, workload, implementation, direction) for direction in workload.directions]
    return found


class Machine:
    """Device of the measurements, with its ceilings, each measured in the same run at its first use."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self.proven: set[tuple[str, str]] = set()
        """Operators and shapes whose fused form was checked."""

    @functools.cached_property
    def copy_bandwidth(self) -> float:
        return timing.copy_bandwidth(self.device)

    @functools.cached_property
    def matmul_flops(self) -> float:
        return timing.matmul_flops(self.device, self.dtype)

    @functools.cached_property
    def multiply_add_flops(self) -> float | None:
        """Operations per second of multiply-adds in registers; None on a GPU and without the extension."""
        return timing.multiply_add_flops() if self.device.type == "cpu" else None

    @functools.cached_property
    def facts(self) -> dict[str, str | None]:
        on_gpu = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name() if on_gpu else f"{_name_of_cpu()}, {_threads()}",
            "architecture": "sm_{}{}".format(*torch.cuda.get_device_capability()) if on_gpu else "cpu",
            "torch": torch.__version__,
            "triton": _version_of_triton(),
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
        }


def _threads() -> str:
    """Part of a CPU's name, so that each number of threads has a report of its own."""
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' * (threads > 1)}"


def _name_of_cpu() -> str:
    import cpuinfo  # comes with pytest-benchmark

    return cpuinfo.get_cpu_info().get("brand_raw", "cpu")


def _version_of_triton() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return triton.__version__


def samples_to_check(workload: Workload, machine: Machine) -> int:
    per_sample = workload.directions["forward"].bytes // machine.dtype.itemsize // workload.batch
    return max(1, min(workload.batch, CHECKED_ELEMENTS[machine.device.type] // max(per_sample, 1)))


def prove(workload: Workload, backend: str, machine: Machine) -> None:
    """Compare the fused form with float64, outputs and gradients, by the rule of the tests; or ``AssertionError``."""
    key = workload.operator, workload.shape
    if key in machine.proven:
        return
    inputs = first_samples(workload.make_inputs(), workload.batched, samples_to_check(workload, machine))
    for name in workload.differentiable:
        inputs[name].requires_grad_()
    with torch.enable_grad():
        assert_parity(workload.function, inputs, backend=backend)
    machine.proven.add(key)


def error_against_float64(workload: Workload, rival: Rival, machine: Machine) -> float:
    """Largest difference from its definition in float64, relative to the largest value."""
    inputs = (rival.make_inputs or workload.make_inputs)()
    count = samples_to_check(workload, machine)
    # The function sees the whole batch: a compiled one would compile again for another.
    outputs = [out[:count] for out in as_tuple(rival.function(**inputs))]
    exact = first_samples(inputs, rival.batched or workload.batched, count)
    exact = {name: x.double() if is_floating(x) else x for name, x in exact.items()}
    with dk.use_backend("eager"):
        truths = as_tuple((rival.definition or workload.function)(**exact))
    return max(((o - t).abs().max() / t.abs().max()).item() for o, t in zip(outputs, truths, strict=True))


def is_floating(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def measure(benchmark: Any, case: Case, machine: Machine) -> None:
    """Time a case and keep its record in ``benchmark.extra_info``.

    Raises :class:`Unavailable` where it cannot run or does not fit, and ``AssertionError`` where a fused form is wrong:
    then nothing is timed.
    """
    workload, direction, device = case.workload, case.workload.directions[case.direction], machine.device
    rival = resolve(workload, case.implementation, device, machine.dtype)
    ceilings = (  # while memory is free
        machine.copy_bandwidth,
        machine.matmul_flops if workload.matmul else None,
        machine.multiply_add_flops if direction.flops else None,
    )
    own_name = "backward" if case.direction == FORWARD_BACKWARD else case.direction
    gradients = rival.gradients.get(own_name, direction.gradients)
    with (
        timing.stream(device),
        rival.around(),
        dk.use_backend(rival.backend),
        torch.set_grad_enabled(bool(gradients)),
    ):
        if case.implementation == "fused":
            prove(workload, rival.backend, machine)
        calls, record = prepare(case, rival, gradients, machine)
        record["wall_us"] = wall = time_call(benchmark, calls, device) * 1e6
        record["host_us"] = wall  # a CPU is the device itself: there is nothing that goes on after the call
        if device.type == "cuda":
            record["host_us"] = timing.host_seconds(calls, device) * 1e6
            seconds, record["kernel_timing"] = timing.kernel_seconds(calls)
            record["kernel_us"] = seconds * 1e6
        del calls  # their memory is needed for the check
        if not gradients:
            record["relative_error_float64"] = error_against_float64(workload, rival, machine)
    benchmark.group = f"{workload.operator} {case.direction}"
    benchmark.extra_info |= record | description(case, rival, machine)
    benchmark.extra_info |= rates(record.get("kernel_us", wall) / 1e6, direction, *ceilings)


def prepare(
    case: Case, rival: Rival, gradients: tuple[str, ...], machine: Machine
) -> tuple[list[timing.Call], dict[str, Any]]:
    """Calls on memory of their own, as many as a cold cache takes, if they fit."""
    workload, device = case.workload, machine.device
    make_inputs = rival.make_inputs or workload.make_inputs
    inputs = make_inputs()
    problem = rival.unavailable_reason(case.direction, inputs)
    if problem is not None:
        raise Unavailable(problem)
    moved = workload.directions[case.direction].bytes
    copies = timing.copies_to_rotate(moved, timing.rotated_bytes(device), timing.MOST_COPIES[device.type])
    record: dict[str, Any] = {}
    if device.type == "cuda":
        bind(rival.function, inputs, gradients)()  # what it compiles or tries out is no part of what it needs
        # The peak of a backward includes the tensors saved by the forward and the incoming gradient.
        peak = timing.peak_memory(lambda: bind(rival.function, inputs, gradients)(), device)
        record["peak_memory_bytes"] = peak
        needed = copies * (peak + sum(x.nbytes for x in inputs.values() if isinstance(x, Tensor)))
        free = timing.free_bytes(device)
        if needed > free:
            raise Unavailable(f"{copies} copies need {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free")
    with_forward = workload.directions[case.direction].with_forward
    return [bind(rival.function, make_inputs(), gradients, with_forward) for _ in range(copies)], record


def time_call(benchmark: Any, calls: list[timing.Call], device: torch.device) -> float:
    """Return the median seconds of a call until its results are ready, host included."""
    rotation = itertools.cycle(calls)

    def target() -> None:
        next(rotation)()
        timing.synchronise(device)

    timing.warm_up(target, len(calls))
    benchmark.pedantic(target, rounds=timing.ROUNDS)
    return benchmark.stats.stats.median


def description(case: Case, rival: Rival, machine: Machine) -> dict[str, Any]:
    workload = case.workload
    note = {"note": rival.note} if rival.note else {}
    return {
        "operator": workload.operator,
        "direction": case.direction,
        "implementation": case.implementation,
        "shape": workload.shape,
        "batch": workload.batch,
        "width": workload.width,
        "scope": case.scope,
        "dtype": str(machine.dtype).removeprefix("torch."),
        **machine.facts,
        **note,
    }


def rates(
    seconds: float, direction: Direction, copy: float, matmul: float | None, multiply_adds: float | None
) -> dict[str, float]:
    """Against the ceilings, in bytes and operations per second.

    ``seconds`` are the kernels' on a GPU, the call's on a CPU; ``matmul`` is None for other operations than products,
    ``multiply_adds`` where it was not measured.
    """
    record = {
        "bytes": direction.bytes,
        "flops": direction.flops,
        "gigabytes_per_second": direction.bytes / seconds / 1e9,
        "fraction_of_copy": direction.bytes / seconds / copy,
        "copy_gigabytes_per_second": copy / 1e9,
    }
    if direction.flops:
        record["teraflops_per_second"] = direction.flops / seconds / 1e12
    if matmul is not None:
        record["matmul_teraflops_ceiling"] = matmul / 1e12
        record["fraction_of_matmul"] = direction.flops / seconds / matmul
    if multiply_adds is not None:
        record["multiply_add_teraflops_ceiling"] = multiply_adds / 1e12
        record["fraction_of_multiply_adds"] = direction.flops / seconds / multiply_adds
    return record
