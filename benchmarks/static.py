"""What every kernel configuration costs, read off the machine code without a GPU.

``python -m benchmarks.static [operator ...]`` compiles for sm_80 and sm_90 and writes ``static.json`` and ``static.md``
into ``benchmarks/results``. Nothing in it is a measurement of speed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dimr_kernels.static_analysis import OPERATORS, cases_by_architecture, compile_case

RESULTS = Path(__file__).parent / "results"
REGISTERS_PER_SM = 65536
WARPS_PER_SM = 64
BLOCKS_PER_SM = 32
SHARED_PER_SM = {80: 164 << 10, 90: 228 << 10}
SHARED_RESERVED = 1 << 10  # per block, by the driver
COLUMNS = ("kernel", "sm", "warps", "registers", "spilled", "shared", "occupancy", "load", "store", "instr/output", "s")


def occupancy(registers: int, shared: int, warps: int, architecture: int) -> float:
    """Share of a multiprocessor's warps that can be resident at once (CUDA programming guide, compute capabilities)."""
    per_warp = -(-max(registers, 1) * 32 // 256) * 256  # registers are given out in units of 256 per warp
    by_registers = REGISTERS_PER_SM // (per_warp * warps)
    by_shared = SHARED_PER_SM[architecture] // (shared + SHARED_RESERVED)
    blocks = min(by_registers, by_shared, WARPS_PER_SM // warps, BLOCKS_PER_SM)
    return blocks * warps / WARPS_PER_SM


def rows_of(operator: str) -> list[dict[str, Any]]:
    rows = []
    for case, architecture in cases_by_architecture(operator):
        row = asdict(compile_case(case, architecture)) | {"operator": operator, "warps": case.num_warps}
        row["occupancy"] = occupancy(row["registers"], row["shared_bytes"], case.num_warps, architecture)
        rows.append(row)
    return rows


def widths(accesses: dict[str, int]) -> str:
    """``{"16": 8, "4": 2}`` -> ``16 B x8, 4 B x2``, widest first."""
    return ", ".join(f"{width} B x{n}" for width, n in sorted(accesses.items(), key=lambda item: -int(item[0])))


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [
        "# Kernel configurations, compiled",
        "",
        f"Read off machine code by `python -m benchmarks.static` (Triton {importlib.metadata.version('triton')}); "
        "no GPU took part and nothing here is a speed.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    for row in rows:
        per_output = row["instructions_per_output"]
        cells = (
            row["name"], row["architecture"], row["warps"], row["registers"], row["spill_bytes"], row["shared_bytes"],
            f"{row['occupancy']:.0%}", widths(row["loads"]), widths(row["stores"]),
            "" if per_output is None else f"{per_output:.1f}", row["compile_seconds"],
        )  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Tabulate what every kernel configuration costs in machine code.")
    parser.add_argument("operators", nargs="*", default=OPERATORS)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for static.json and static.md")
    options = parser.parse_args(arguments)
    rows = []
    for operator in options.operators:
        rows += rows_of(operator)
        sys.stderr.write(f"{operator}: {sum(row['operator'] == operator for row in rows)} kernels compiled\n")
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "static.json").write_text(json.dumps(rows, indent=1) + "\n")
    (options.output / "static.md").write_text(markdown(rows))


if __name__ == "__main__":
    main()
