"""Options and fixtures: which cases a run has, and the ``measure`` fixture that times one and records it.

A file of benchmarks has ``SHAPES`` (:class:`benchmarks.shapes.Shapes`), ``workload(shape, dtype, device)`` and a test
with the arguments ``measure`` and ``case``.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch

from dimr.utils import keep_freed_memory

from . import timing
from .measurement import Case, Machine, cases
from .measurement import measure as measure_case
from .rivals import Unavailable
from .shapes import SCOPES

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
if DEVICE.type == "cpu":
    keep_freed_memory()  # else the times of results above 32 MB are mostly those of mapping pages, in every form
MACHINE = Machine(DEVICE, DTYPE)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shapes",
        choices=(*SCOPES, "all"),
        help="target: the shapes that the targets speak of; sweep: every width of the five models at batch 1 to 256; "
        "large: well beyond a GPU's cache; default: all, on a CPU a few small ones",
    )
    parser.addoption("--threads", type=int, help="torch's threads on a CPU; default: one for each core")


def pytest_configure(config: pytest.Config) -> None:
    threads = config.getoption("--threads", default=None)
    if threads is not None:
        torch.set_num_threads(threads)
    if threads == 1 and DEVICE.type == "cpu":
        timing.clock = time.thread_time
        config.option.benchmark_timer = "time.thread_time"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        module = metafunc.module
        found = cases(module.SHAPES, module.workload, metafunc.config.getoption("--shapes"), DTYPE, DEVICE)
        metafunc.parametrize("case", found, ids=str)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.update(MACHINE.facts, threads=torch.get_num_threads())


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _freed_memory() -> Iterator[None]:
    yield
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


def measure_or_skip(benchmark: Any, case: Case) -> None:
    try:
        return measure_case(benchmark, case, MACHINE)
    except Unavailable as problem:
        reason = str(problem)
    except torch.OutOfMemoryError as problem:
        reason = str(problem).splitlines()[0]
    # Outside the handlers, whose tracebacks would hold on to the tensors.
    pytest.skip(f"{case}: {reason}")


@pytest.fixture
def measure(benchmark: Any) -> Callable[[Case], None]:
    return partial(measure_or_skip, benchmark)
