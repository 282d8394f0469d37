from __future__ import annotations

import json

import pytest

from benchmarks import static
from benchmarks.machine_code.architectures import ARCHITECTURES
from benchmarks.machine_code.compile import merged_name
from benchmarks.machine_code.extension import extension_rows
from benchmarks.static import COLUMNS, as_json, completed, issue_over_memory, markdown, occupancy, widths
from dimr_kernels.dispatch import extension_status

ROW = {
    "name": "kernel[D=8|16]", "architecture": 90, "num_warps": 4, "registers": 40, "spill_bytes": 0, "shared_bytes": 16,
    "loads": {"4": 2, "16": 8, "TMA": 1}, "stores": {"16": 4}, "per_output": {"all": 57.0, "float32": 20.0},
    "bytes_per_output": 6, "compiler": "Triton 9, ptxas 99.9", "summed_types": ["f32"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "architecture", "expected"),
    [
        (32, 0, 8, 90, 1.0),  # limited by the 64 warps of a multiprocessor
        (128, 0, 4, 90, 0.25),  # 65536 / (128 * 32) = 16 warps
        (230, 0, 2, 90, 0.125),  # 230 is given out as 232: 8.8 warps, in blocks of 2
        (32, 100 << 10, 4, 80, 4 / 64),  # one block of 101 KB in 164
        (32, 100 << 10, 4, 90, 8 / 64),  # two in 228
        (32, 0, 8, 86, 1.0),  # the 48 warps of a smaller multiprocessor
        (32, 0, 2, 86, 32 / 48),  # in at most 16 blocks
        (32, 0, 2, 120, 1.0),  # 24
        (32, 48 << 10, 4, 89, 8 / 48),  # two blocks of 49 KB in 100
    ],
)
def test_occupancy(registers, shared, warps, architecture, expected):
    assert occupancy(registers, shared, warps, architecture) == expected


@pytest.mark.parametrize(
    ("per_output", "bytes_per_output", "architecture", "expected"),
    [
        # H100: 132 * 128 * 1.7e9 instructions a second are 57.4 in the time that 6 bytes take at 3 TB/s.
        ({"all": 57.4, "float32": 0, "integer": 0, "special": 0}, 6, 90, 1.0),
        ({"all": 57.4, "float32": 0, "integer": 0, "special": 0}, 12, 90, 0.5),
        ({"all": 57.4, "float32": 0, "integer": 0, "special": 57.4 / 8}, 6, 90, 1.0),
        ({"all": 57.4, "float32": 0, "integer": 0, "special": 57.4 / 4}, 6, 90, 2.0),
        # A100: half as many float32 units as lanes that issue. 7x7 taps over 4 bytes: 5.03 ps over 2.29 ps.
        ({"all": 49, "float32": 49, "integer": 0, "special": 0}, 4, 80, 2.2),
        ({}, 4, 80, None),
        ({"all": 3, "float32": 0, "integer": 0, "special": 0}, 0, 80, None),
        ({"all": 3, "float32": 0, "integer": 0, "special": 0}, 4, 86, None),
    ],
)
def test_issue_over_memory(per_output, bytes_per_output, architecture, expected):
    found = issue_over_memory(per_output, bytes_per_output, architecture)
    assert found == (expected if expected is None else pytest.approx(expected, rel=0.01))


def test_table():
    units = {"all": 57.4, "float32": 57.4, "integer": 0, "special": 0}
    alike = [{"architecture": number, "num_warps": 8, "compiler": "Triton 9, ptxas 98.7"} for number in (86, 89)]
    rows = [completed(ROW | {"per_output": units} | changed) for changed in [*alike, {}]]
    text = markdown(rows, ["A note."])
    lines = text.splitlines()
    assert "A note." in lines
    assert "Compiled by: Triton 9, ptxas 98.7 on sm_86, sm_89; Triton 9, ptxas 99.9 on sm_90." in text
    assert "163 KB on sm_80; 99 KB on sm_86, sm_89, sm_120; 227 KB on sm_90, sm_100." in text
    assert lines[-2:] == [
        r"| kernel[D=8\|16] | 8 | 86 89 | 40 | 0 | 16 | 100% | TMA x1, 16 B x8, 4 B x2 | 16 B x4 | 57.4 |  |  |",
        r"| kernel[D=8\|16] | 4 | 90 | 40 | 0 | 16 | 75% | TMA x1, 16 B x8, 4 B x2 | 16 B x4 | 57.4 | 6 | 1.00 |",
    ]
    assert lines[-1].replace(r"\|", "").count("|") == len(COLUMNS) + 1


def test_json_has_one_line_per_row():
    text = as_json([ROW, ROW])
    assert json.loads(text) == [ROW, ROW]
    assert len(text.splitlines()) == 4


def test_no_access():
    assert widths({}) == ""


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["f[D=480,bf16]"], "f[D=480,bf16]"),
        (["f[D=1152,bf16]", "f[D=480,bf16]", "f[D=960,bf16]"], "f[D=480|960|1152,bf16]"),
        (["f"], "f"),
    ],
)
def test_names_of_merged_cases(names, expected):
    assert merged_name(names) == expected


def test_unknown_operator_is_named(capsys):
    with pytest.raises(SystemExit):
        static.main(["conv"])
    assert "no operator is called conv; there are depthwise_conv, geglu" in capsys.readouterr().err


def test_extension_without_cuda_says_so(monkeypatch):
    missing = type("Status", (), {"has_cuda": False, "reason": "nvcc was not found"})
    monkeypatch.setattr("benchmarks.machine_code.extension.extension_status", lambda: missing)
    rows, note = extension_rows()
    assert rows == []
    assert "nvcc was not found" in note


@pytest.mark.slow
@pytest.mark.skipif(not extension_status().has_cuda, reason="the extension has no CUDA kernels")
def test_kernels_of_the_extension():
    pytest.importorskip("triton")
    rows, note = extension_rows()
    assert note is None
    assert {row["architecture"] for row in rows} == set(ARCHITECTURES)
    assert all(row["spill_bytes"] == 0 for row in rows)
    for row in rows:
        width = (
            "16"
            if "16-byte" in row["name"]
            else {"fp32": "4", "4 B": "4"}.get(row["name"].split("[")[1].split(",")[0], "2")
        )
        assert set(row["loads"]) == set(row["stores"]) == {width}, row["name"]
