"""Lower bounds of a model's time, against figures counted by hand for an H100."""

from __future__ import annotations

import dataclasses

import pytest

import dimr
from benchmarks.model_floor import Ceilings, Part, by_name, forward_floor, forward_parts, training_floor

# 3.0 TB/s copied, 798 TFLOP/s in bf16 products, 59.4 TFLOP/s in float32 multiply-adds.
H100 = Ceilings(copy=3.0e12, matmul=798e12, vector=59.4e12)
ROWS = 64
# Milliseconds.
FORWARD = {"dimr-m-3r": 13.3, "dimr-l-3r": 26.7, "dimr-xl-2r": 31.2, "dimr-xl-3r": 45.8, "dimr-g-2r": 62.1}
TRAINING = {"dimr-m-3r": 41, "dimr-xl-2r": 101, "dimr-xl-3r": 145, "dimr-g-2r": 203}
PARTS_OF_XL_2R = {
    "qkv, out": 5.9, "attention": 1.6, "transformer norms": 1.6, "mlp in": 9.1, "mlp out": 4.7, "long skips": 2.2,
    "depthwise": 1.1, "convolution norms": 0.9, "cascade product": 3.0, "cascade norms": 0.9,
}  # fmt: skip


@pytest.mark.parametrize("name", FORWARD)
def test_forward(name):
    assert 1e3 * forward_floor(dimr.model_config(name), ROWS, H100) == pytest.approx(FORWARD[name], rel=0.01)


@pytest.mark.parametrize("name", TRAINING)
def test_training_step(name):
    # The smallest model's figure was rounded down.
    tolerance = 0.025 if name == "dimr-m-3r" else 0.005
    assert 1e3 * training_floor(dimr.model_config(name), ROWS, H100) == pytest.approx(TRAINING[name], rel=tolerance)


def test_part_by_part():
    milliseconds = {
        name: 1e3 * seconds
        for name, seconds in by_name(forward_parts(dimr.model_config("dimr-xl-2r"), ROWS), H100).items()
    }
    assert milliseconds == pytest.approx(PARTS_OF_XL_2R, abs=0.06)


def test_matrix_products_agree_with_the_models_own_count():
    """Check that the parts leave out embeddings and heads only."""
    for name in FORWARD:
        config = dimr.model_config(name)
        counted = sum(part.count * (part.matmul + part.vector) for part in forward_parts(config, 1)) / 2
        assert counted == pytest.approx(dimr.count_macs(config), rel=0.01)


def test_weights_decide_at_one_row():
    """Check that a forward of one row takes about as long as reading every weight once."""
    config = dataclasses.replace(dimr.model_config("dimr-xl-2r"), input_size=4)
    floor = forward_floor(config, 1, H100)
    weights = 2 * dimr.count_parameters(config) / H100.copy
    assert 0.97 * weights < floor < 1.25 * weights


def test_the_slowest_resource_decides():
    part = Part("a", 2, bytes=10.0, matmul=30.0, vector=7.0)
    assert part.bound(Ceilings(1.0, 10.0)) == (20.0, "bytes")
    assert part.bound(Ceilings(1.0, 1.0)) == (60.0, "matmul")
    assert part.bound(Ceilings(1.0, 10.0, 0.5)) == (28.0, "vector")


def test_wider_elements_cost_bytes_only():
    config = dimr.model_config("dimr-m-3r")
    parts = zip(forward_parts(config, 2, 4), forward_parts(config, 2, 2), strict=True)
    assert all(wide.bytes == 2 * narrow.bytes and wide.matmul == narrow.matmul for wide, narrow in parts)
