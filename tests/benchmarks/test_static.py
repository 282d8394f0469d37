from __future__ import annotations

import pytest

from benchmarks.static import COLUMNS, markdown, occupancy, widths


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "architecture", "expected"),
    [
        (32, 0, 8, 90, 1.0),  # limited by the 64 warps of a multiprocessor
        (128, 0, 4, 90, 0.25),  # 65536 / (128 * 32) = 16 warps
        (230, 0, 2, 90, 0.125),  # 230 is given out as 232: 8.8 warps, in blocks of 2
        (32, 100 << 10, 4, 80, 4 / 64),  # one block of 101 KB in 164
        (32, 100 << 10, 4, 90, 8 / 64),  # two in 228
    ],
)
def test_occupancy(registers, shared, warps, architecture, expected):
    assert occupancy(registers, shared, warps, architecture) == expected


def test_table():
    row = {
        "name": "kernel[D=8]", "architecture": 90, "warps": 4, "registers": 40, "spill_bytes": 0, "shared_bytes": 16,
        "occupancy": 0.5, "loads": {"4": 2, "16": 8}, "stores": {"16": 4}, "instructions_per_output": 3.25,
        "compile_seconds": 1.5,
    }  # fmt: skip
    lines = markdown([row]).splitlines()
    assert lines[-1] == "| kernel[D=8] | 90 | 4 | 40 | 0 | 16 | 50% | 16 B x8, 4 B x2 | 16 B x4 | 3.2 | 1.5 |"
    assert lines[-1].count("|") == len(COLUMNS) + 1


def test_no_access():
    assert widths({}) == ""
