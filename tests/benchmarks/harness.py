"""Helpers of the tests of the benchmark harness."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import dimr_kernels as dk
from benchmarks.measurement import Machine
from benchmarks.workload import Direction, Workload, random

CPU = torch.device("cpu")


class Benchmark:
    """Stands in for pytest-benchmark's fixture."""

    def __init__(self) -> None:
        self.extra_info: dict[str, Any] = {}
        self.group = ""
        self.calls = 0
        self.stats = SimpleNamespace(stats=SimpleNamespace(median=0.001))

    def pedantic(self, target: Callable[[], object], rounds: int) -> None:
        for _ in range(rounds):
            target()
            self.calls += 1


def machine() -> Machine:
    found = Machine(CPU, torch.float32)
    found.copy_bandwidth, found.matmul_flops, found.multiply_add_flops = 1e10, 1e12, 2e12
    found.facts = {"device": "a CPU", "architecture": "cpu", "torch": "2", "triton": None, "cuda": None, "python": "3"}
    return found


def scaled(x: Tensor, forward_error: float = 0.0, gradient_error: float = 0.0) -> Tensor:
    """Compute ``2 x``; under any backend but "eager" with the error asked for."""
    if dk.dispatch.current_backend() == "eager":
        return 2 * x
    slope = 2 * (1 + gradient_error)
    return slope * x + (2 - slope) * x.detach() + forward_error


def scaling(function: Callable[..., Any] = scaled, **fields: Any) -> Workload:
    values: dict[str, Any] = {
        "operator": "scaled",
        "shape": "4 x 6",
        "batch": 4,
        "width": 6,
        "fused": "auto",
        "function": function,
        "make_inputs": lambda: {"x": random(4, 6, dtype=torch.float32, device=CPU)},
        "batched": ("x",),
        "directions": {"forward": Direction(192), "backward": Direction(192, ("x",))},
    }
    return Workload(**(values | fields))
