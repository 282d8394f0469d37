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
    ("block", "width", "padded"),
    [(None, 192, 256), (None, 512, 512), (None, 1152, 2048), (1024, 1536, 2048), (1024, 480, 512), (32, 240, 256)],
)
def test_padding(block, width, padded):
    assert Kernel(2, 1.0, block).padded(width) == padded


def test_bound_by_memory():
    # [64, 257, 960] in bfloat16, read and written: 63.16 MB at 0.92 x 3.0 TB/s, and 1 us to start.
    found = predict("td_layer_norm", "forward", 2 * 2 * 64 * 257 * 960, 960, H100)
    assert found.bound_by == "memory"
    assert found.seconds == pytest.approx(22.884e-6 + 1e-6, rel=1e-4)
    assert found.fraction_of_copy == pytest.approx(21.053 / 23.884, rel=1e-4)


def test_bound_by_instructions():
    # [64, 32, 32, 480]: 31.46 M outputs x 60.9 instructions at 0.9 x 29.653 T/s, and two kernels to start.
    found = predict("depthwise_conv7x7", "forward", 2 * 2 * 64 * 32 * 32 * 480, 480, H100)
    assert found.bound_by == "instructions"
    assert found.seconds == pytest.approx(71.78e-6 + 2e-6, rel=1e-3)
    assert found.fraction_of_copy == pytest.approx(41.943 / 73.78, rel=1e-3)


def test_padded_lanes_cost_instructions():
    # 1536 in blocks of 1024 costs 2048: 40.5 x 4/3 = 54 instructions to 6 bytes, more than an H200's memory takes.
    found = predict("geglu", "forward", 6 * 1e9, 1536, H200)
    assert found.bound_by == "instructions"
    assert found.seconds == pytest.approx(54e9 / (0.9 * 29.653e12) + 1e-6, rel=1e-4)
    assert predict("geglu", "forward", 6 * 1e9, 2048, H100).bound_by == "memory"


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
