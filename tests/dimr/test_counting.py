"""The figures that the paper and the published implementation give, counted without allocating a weight."""

from __future__ import annotations

import pytest

import dimr

# millions of parameters with td_layer norms, with td_rms norms; billions of multiply-adds
PUBLISHED = {
    "dimr-m-3r": (132.94, 132.83, 53.5),
    "dimr-l-3r": (284.38, 284.14, 110.6),
    "dimr-xl-2r": (505.39, 505.05, 160.2),
    "dimr-xl-3r": (525.39, 525.03, 206.1),
    "dimr-g-2r": (1056.95, 1056.35, 331.1),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters(name):
    td_layer, td_rms, _ = PUBLISHED[name]
    found = [dimr.count_parameters(dimr.model_config(name, norm=norm)) / 1e6 for norm in ("td_layer", "td_rms")]
    assert found == pytest.approx([td_layer, td_rms], abs=0.005)


LARGE = ("dimr-l-3r", "dimr-xl-3r", "dimr-g-2r")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in PUBLISHED]
)
def test_multiply_adds(name):
    assert dimr.count_macs(dimr.model_config(name)) / 1e9 == pytest.approx(PUBLISHED[name][2], rel=0.002)


def test_multiply_adds_by_hand():
    config = dimr.DiMRConfig(in_channels=1, input_size=2, dims=(8, 4), layers=(1, 1), num_heads=2, kernel_size=3)
    tokens, D = 1 + 1, 8
    lower = 1 * 4 * D + tokens * (4 * D * D + 3 * D * 2 * D) + 2 * tokens * tokens * D + 1 * D * 9
    pixels, cascade, D = 4, 2 * 8, 4
    upper = pixels * D + 1 * cascade * 4 * D + pixels * (9 * D + 3 * D * 2 * D) + pixels * D * 9
    assert dimr.count_macs(config) == lower + upper


def test_a_model_counts_like_its_configuration():
    model = dimr.create_model("dimr-tiny-3r")
    assert dimr.count_parameters(model) == dimr.count_parameters(model.config)
    assert dimr.count_macs(model) == dimr.count_macs(model.config)
    assert sum(p.numel() for p in model.parameters()) == dimr.count_parameters(model)


def test_names():
    names = dimr.list_models()
    assert set(PUBLISHED) < set(names)
    assert len(names) == len(PUBLISHED) + 2
    counts = [dimr.count_parameters(dimr.model_config(name)) for name in names]
    assert counts == sorted(counts)
