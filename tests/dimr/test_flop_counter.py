"""torch's FlopCounterMode over the model: every form counts what ``count_macs`` does, twice."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import dimr
import dimr_kernels as dk
from dimr.model.network import without_weights
from dimr_kernels.dispatch import unavailable_reason
from dimr_kernels.ops.attention import MOST_SCORES_ON_CPU
from tests.support.small_models import TINY, inputs, perturbed_model

FORMS = ("eager", "triton", "cpp", "auto")
SMALL = ("dimr-tiny-3r", "dimr-small-3r")
NAMES = {str(key) for key in flop_registry}
COUNTS_ATTENTION = "aten._scaled_dot_product_flash_attention_for_cpu" in NAMES
"""Attention on a CPU is counted from torch 2.15 on."""


def attention_flops(config: dimr.DiMRConfig) -> int:
    tokens = 1 + config.resolutions[0] ** 2
    return 2 * 2 * config.blocks[0] * tokens * tokens * config.dims[0]


def expected(config: dimr.DiMRConfig, form: str) -> int:
    """Twice ``count_macs``, less attention where torch's own computes it: all but plain products."""
    scores = config.num_heads * (1 + config.resolutions[0] ** 2) ** 2
    by_products = form == "eager" or (form != "triton" and scores <= MOST_SCORES_ON_CPU)
    counted = COUNTS_ATTENTION or by_products
    return 2 * dimr.count_macs(config) - (0 if counted else attention_flops(config))


def skip_unless_it_runs(form: str) -> None:
    reason = None if form in ("eager", "auto") else unavailable_reason(form, torch.device("cpu"))
    if reason is not None:
        pytest.skip(f"no {form} form here: {reason}")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "name", [name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in dimr.list_models()]
)
def test_variants(name, form):
    """Count with tensors that have no data, on a CPU."""
    skip_unless_it_runs(form)
    config = dimr.model_config(name)
    model = without_weights(config)
    with FakeTensorMode(), torch.no_grad(), dk.use_backend(form):
        weights = {key: torch.empty(value.shape) for key, value in model.named_parameters()}
        x = torch.empty(1, config.in_channels, config.input_size, config.input_size)
        labels = torch.zeros(1, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            torch.func.functional_call(model, weights, (x, 500.0, labels))
    assert counter.get_total_flops() == expected(config, form)


@pytest.mark.parametrize("form", FORMS)
def test_forward_and_backward(form):
    """The counts of a model that computes; of the backward, each product twice."""
    skip_unless_it_runs(form)
    model, given = perturbed_model(), inputs(batch=1)
    with dk.use_backend(form):
        with FlopCounterMode(display=False) as counter:
            outputs = model(**given)
        assert counter.get_total_flops() == expected(TINY, form)
        with FlopCounterMode(display=False) as counter:
            sum(out.sum() for out in outputs).backward()
    counts = {str(key): value for key, value in counter.get_flop_counts()["Global"].items()}
    if form != "eager":
        depthwise = sum(value for key, value in counts.items() if "depthwise" in key)
        pixels = [r * r for r in TINY.resolutions]
        kernels = sum(
            blocks * D * n * TINY.kernel_size**2
            for blocks, D, n in zip(TINY.blocks[1:], TINY.dims[1:], pixels[1:], strict=True)
        )
        assert depthwise == 2 * 2 * kernels
        first = 2 * sum(  # no gradient of x: the embeddings' products, once each
            n * TINY.in_channels * p * p * D for n, p, D in zip(pixels, TINY.patch_sizes, TINY.dims, strict=True)
        )
        assert sum(counts.values()) == 2 * expected(TINY, form) - first


@pytest.mark.parametrize("form", FORMS)
def test_engine(form):
    """torch does not count ``addmm_``, the products that the engine adds to what is there."""
    skip_unless_it_runs(form)
    tokens = [1 + TINY.resolutions[0] ** 2, *(r * r for r in TINY.resolutions[1:])]
    in_place = sum(
        2 * blocks * n * D * hidden
        for blocks, n, D, hidden in zip(TINY.blocks, tokens, TINY.dims, TINY.hidden_dims, strict=True)
    )
    with dk.use_backend(form):
        engine = dimr.optimize_for_inference(perturbed_model(), torch.float32)
        with FlopCounterMode(display=False) as counter:
            engine(**inputs(batch=1))
    in_place = 0 if "aten.addmm_" in NAMES else in_place
    assert counter.get_total_flops() == expected(TINY, form) - in_place


@pytest.mark.parametrize("first", ["import dimr", "from torch.utils.flop_counter import FlopCounterMode"])
def test_formulas_wait_for_the_counter(first):
    """The counter imports Triton: neither package imports it, and the formulas are there in either order."""
    code = f"""
import sys
{first}
import dimr
if {"dimr" in first}:
    assert "triton" not in sys.modules and "torch.utils.flop_counter" not in sys.modules
import torch.utils.flop_counter
names = {{str(key) for key in torch.utils.flop_counter.flop_registry if "dimr_kernels" in str(key)}}
assert len(names) == 7, names
"""
    subprocess.run([sys.executable, "-c", code], check=True)
