"""The whole model: one forward and one training step, eager, compiled and with the fused operators."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import dimr
import dimr_kernels as dk

from . import timing
from .conftest import DEVICE, DTYPE

LOW_PRECISION = torch.float32 != DTYPE
MODELS = ["dimr-m-3r", "dimr-xl-2r", "dimr-xl-3r"] if DEVICE.type == "cuda" else ["dimr-tiny-3r"]
BATCHES = (1, 8, 64) if DEVICE.type == "cuda" else (8,)
# Name -> (backend, compiled). "auto" takes whatever fused forms run on this machine.
IMPLEMENTATIONS = {"eager": ("eager", False), "compiled": ("eager", True), "fused": ("auto", False)}


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> None:
    torch._dynamo.reset()


def make_inputs(model: dimr.DiMR, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    config = model.config
    x = torch.randn(batch, config.in_channels, config.input_size, config.input_size, device=DEVICE)
    timestep = torch.rand(batch, device=DEVICE) * 999 + 1
    return x, timestep, torch.randint(config.num_classes, (batch,), device=DEVICE)


def time_steps(benchmark, model: dimr.DiMR, step: Callable[..., object], name: str, batch: int, kind: str) -> None:
    inputs = itertools.cycle([make_inputs(model, batch) for _ in range(2)])

    def target() -> None:
        step(*next(inputs))
        timing.synchronise(DEVICE)

    benchmark.group = f"{name} {kind}, {batch} rows"
    benchmark.pedantic(target, rounds=10, warmup_rounds=2)
    benchmark.extra_info |= {
        "dtype": str(DTYPE),
        "rows": batch,
        "rows_per_second": batch / benchmark.stats.stats.median,
        "giga_macs_per_row": dimr.count_macs(model) / 1e9,
    }


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", MODELS)
def test_forward(benchmark, name, implementation, batch):
    backend, compiled = IMPLEMENTATIONS[implementation]
    model = dimr.create_model(name).to(DEVICE).eval()
    run = torch.compile(model, fullgraph=True) if compiled else model

    def step(*inputs: Tensor) -> None:
        with torch.inference_mode(), torch.autocast(DEVICE.type, DTYPE, enabled=LOW_PRECISION):
            run(*inputs)

    with dk.use_backend(backend):
        time_steps(benchmark, model, step, name, batch, "forward")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", MODELS[:1])
def test_training_step(benchmark, name, implementation):
    backend, compiled = IMPLEMENTATIONS[implementation]
    model = dimr.create_model(name).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    run = torch.compile(model, fullgraph=True) if compiled else model

    def step(x: Tensor, timestep: Tensor, class_labels: Tensor) -> None:
        with torch.autocast(DEVICE.type, DTYPE, enabled=LOW_PRECISION):
            loss = dimr.multi_scale_loss(run(x, timestep, class_labels), torch.randn_like(x)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    with dk.use_backend(backend):
        time_steps(benchmark, model, step, name, 8, "training step")
