"""The whole model: forwards of 1, 8 and 64 rows, and the training step at the largest batch that fits.

Records in ``extra_info``, beside the machine's facts: ``ms``, ``rows_per_second``, ``images_per_second`` (training: of
the batch; forward: whole samples of ``STEPS`` steps with guidance, two rows each), ``floor_ms`` and ``times_floor``
(:mod:`benchmarks.model_floor`, with the ceilings of this run), ``fraction_of_floor``, ``peak_memory_bytes`` (GPU only).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

import dimr
import dimr_kernels as dk

from . import timing
from .conftest import DEVICE, DTYPE, MACHINE
from .model_floor import Ceilings, forward_floor, training_floor
from .model_runs import FORWARDS, TRAININGS, Form, TrainingRun, forward_of, largest_batch, make_inputs
from .shapes import PAPER

ON_GPU = DEVICE.type == "cuda"
# A CPU only shows that everything runs, and torch.compile there traces without generating code.
MODELS = (
    {name: dimr.model_config(name) for name in PAPER}
    if ON_GPU
    else {"trial": dimr.model_config("dimr-tiny-3r", input_size=8, dims=(48, 24), layers=(1, 1))}
)
COMPILER = "inductor" if ON_GPU else "aot_eager"
ROWS = (1, 8, 64) if ON_GPU else (2,)
ROUNDS = 20 if ON_GPU else 3
FIRST_BATCH, LARGEST_BATCH = (64, 1024) if ON_GPU else (1, 2)
STEPS = 50  # of a sample

# Largest batch of the form that is not compiled: where a compiled one begins, which takes minutes for every size.
_batches: dict[tuple[str, str], int] = {}


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> None:
    torch._dynamo.reset()


def float32_multiply_adds() -> float | None:
    """Operations per second outside of the matrix units by the GPU's data sheet: 128 lanes a multiprocessor."""
    if not ON_GPU:
        return None
    properties = torch.cuda.get_device_properties(DEVICE)
    kilohertz = getattr(properties, "clock_rate", None)
    return kilohertz and 2 * 128 * properties.multi_processor_count * kilohertz * 1e3


@pytest.fixture(scope="session")
def ceilings() -> Ceilings:
    return Ceilings(MACHINE.copy_bandwidth, MACHINE.matmul_flops, float32_multiply_adds())


def time_calls(benchmark: Any, call: Callable[[], object]) -> dict[str, Any]:
    """Return the median time until the device is done, and the peak memory, weights included."""

    def target() -> None:
        call()
        timing.synchronise(DEVICE)

    for _ in range(3 if ON_GPU else 1):
        target()
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats(DEVICE)
    benchmark.pedantic(target, rounds=ROUNDS)
    record: dict[str, Any] = {"ms": 1e3 * benchmark.stats.stats.median}
    if ON_GPU:
        record["peak_memory_bytes"] = torch.cuda.max_memory_allocated(DEVICE)
    return record


def keep(benchmark: Any, record: dict[str, Any], model: str, form: Form, kind: str, rows: int, floor: float) -> None:
    ms = record["ms"]
    images = rows if kind == "training step" else rows / 2 / STEPS
    benchmark.group = f"{model} {kind}, {rows} rows"
    benchmark.extra_info |= record | {
        "model": model,
        "direction": kind,
        "implementation": form.name,
        "compiler": COMPILER if form.compiled else None,
        "checkpointing": form.checkpointing if kind == "training step" else None,
        "rows": rows,
        "dtype": str(DTYPE).removeprefix("torch."),
        "rows_per_second": 1e3 * rows / ms,
        "images_per_second": 1e3 * images / ms,
        "floor_ms": 1e3 * floor,
        "times_floor": ms / 1e3 / floor,
        "fraction_of_floor": 1e3 * floor / ms,
        "copy_gigabytes_per_second": MACHINE.copy_bandwidth / 1e9,
        "matmul_teraflops_ceiling": MACHINE.matmul_flops / 1e12,
        "giga_macs_per_row": dimr.count_macs(MODELS[model]) / 1e9,
        **MACHINE.facts,
    }


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("form", FORWARDS, ids=lambda form: form.name)
@pytest.mark.parametrize("model", MODELS)
def test_forward(benchmark, ceilings, model, form, rows):
    config = MODELS[model]
    inputs = itertools.cycle([make_inputs(config, rows, DEVICE) for _ in range(2)])
    with dk.use_backend(form.backend):
        forward = forward_of(config, form, DEVICE, DTYPE, COMPILER)
        record = time_calls(benchmark, lambda: forward(*next(inputs)))
    keep(benchmark, record, model, form, "forward", rows, forward_floor(config, rows, ceilings, DTYPE.itemsize))


@pytest.mark.parametrize("form", TRAININGS, ids=lambda form: form.name)
@pytest.mark.parametrize("model", MODELS)
def test_training_step(benchmark, ceilings, model, form):
    config = MODELS[model]
    with dk.use_backend(form.backend):
        run = TrainingRun(config, form, DEVICE, DTYPE, COMPILER)
        known = _batches.get((model, form.base + form.checkpointing))
        start, most = (known, known) if form.compiled and known else (FIRST_BATCH, LARGEST_BATCH)
        rows = largest_batch(run.fits, start, most)
        if rows == 0:
            pytest.skip(f"{model}: not even a batch of one fits")
        _batches.setdefault((model, form.base + form.checkpointing), rows)
        run.set_batch(rows)
        record = time_calls(benchmark, run.step)
    keep(benchmark, record, model, form, "training step", rows, training_floor(config, rows, ceilings, DTYPE.itemsize))
