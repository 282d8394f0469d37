from __future__ import annotations

import re
from pathlib import Path

import pytest

import benchmarks
from benchmarks.predictions import H100, H200, KERNELS, Kernel, geglu_linear_seconds, predict, predict_for, table


def test_instructions_per_second():
    # 132 SMs, 4 schedulers of 32 lanes, 1.755 GHz: 49 fused multiply-adds take 1.65 ps.
    assert H100.issue == pytest.approx(29.653e12, rel=1e-4)
    assert 49 / H100.issue == pytest.approx(1.652e-12, rel=1e-3)


@pytest.mark.parametrize(
    ("block", "fitted", "width", "padded"),
    [
        (None, False, 192, 256),
        (None, False, 512, 512),
        (None, False, 1152, 2048),
        (1024, False, 1536, 2048),
        (1024, False, 480, 512),
        (32, False, 240, 256),
        (1024, True, 1536, 1536),  # three blocks of 512
        (1024, True, 1920, 2048),  # a sixteenth idle
        (1024, True, 480, 512),
    ],
)
def test_padding(block, fitted, width, padded):
    assert Kernel(2, 1.0, block, fitted).padded(width) == padded


def test_bound_by_memory():
    # [64, 257, 960] in bfloat16, read and written: 63.16 MB at 0.92 x 3.0 TB/s, and 1 us to start.
    found = predict("td_layer_norm", "forward", 2 * 2 * 64 * 257 * 960, 960, H100)
    assert found.bound_by == "memory"
    assert found.seconds == pytest.approx(22.884e-6 + 1e-6, rel=1e-4)
    assert found.fraction_of_copy == pytest.approx(21.053 / 23.884, rel=1e-4)


def test_bound_by_instructions():
    # [64, 32, 32, 480]: 31.46 M outputs x 59.6 instructions at 0.9 x 29.653 T/s, and two kernels to start.
    found = predict("depthwise_conv7x7", "forward", 2 * 2 * 64 * 32 * 32 * 480, 480, H100)
    assert found.bound_by == "instructions"
    assert found.seconds == pytest.approx(70.25e-6 + 2e-6, rel=1e-3)
    assert found.fraction_of_copy == pytest.approx(41.943 / 72.25, rel=1e-3)


def test_padded_lanes_cost_instructions():
    # A row of 192 costs 256: 21.5 x 4/3 = 28.67 instructions to 4 bytes, more than an H200's memory takes.
    found = predict("td_layer_norm", "forward", 4 * 1e9, 192, H200)
    assert found.bound_by == "instructions"
    assert found.seconds == pytest.approx(28.667e9 / (0.9 * 29.653e12) + 1e-6, rel=1e-4)
    assert predict("td_layer_norm", "forward", 4 * 1e9, 256, H200).bound_by == "memory"
    assert predict("td_layer_norm", "forward", 4 * 1e9, 192, H100).bound_by == "memory"


def test_wide_rows():
    # Backward reads x and the gradient twice: 5 numbers where 3 are counted, at 0.82 of the copy.
    found = predict("td_layer_norm", "backward", 3 * 2 * 64 * 256 * 38400, 38400, H100)
    assert found.fraction_of_copy == pytest.approx(3 / 5 * 0.82, rel=0.01)


def test_product_with_geglu():
    # rows 16448, 960 -> 1920 twice: 121.28 GFLOP; the gate: 31.58 M x 20 instructions, half of them hidden.
    fused, separate = geglu_linear_seconds(64 * 257, 960, 1920, H100)
    assert fused == pytest.approx((217.10 + 11.83 + 1) * 1e-6, rel=1e-3)
    # cuBLAS, then 189.48 MB
    assert separate == pytest.approx((178.79 + 1 + 68.65 + 1) * 1e-6, rel=1e-3)


@pytest.mark.parametrize(
    ("device", "machine"),
    [("NVIDIA H100 80GB HBM3", H100), ("NVIDIA H200", H200), ("NVIDIA A100-SXM4-80GB", None), ("AMD EPYC", None)],
)
def test_machine_of_a_device(device, machine):
    found = predict_for(device, "geglu", "forward", 6e8, 1920)
    assert found == (machine and predict("geglu", "forward", 6e8, 1920, machine))


def test_no_model():
    assert predict("attention", "forward", 1e9, 960, H100) is None
    assert predict("geglu", "forward", 1e9, 38400, H100) is None


def test_notes_hold_what_the_code_predicts():
    notes = Path(benchmarks.__file__).with_name("NOTES.md").read_text()
    written = [tuple(re.split(r" *\| *", line.strip("| "))) for line in notes.splitlines() if line.startswith("|")]
    for line in table():
        assert any(cells[: len(line)] == line for cells in written), f"NOTES.md lacks or contradicts {line}"
    assert len(list(table())) >= len(KERNELS)
