"""Table of every kernel configuration's cost, read from the machine code without a GPU.

``python -m benchmarks.static [operator ...]`` compiles for every GPU of ``machine_code/architectures.py`` and writes
``static.json`` and ``static.md`` into ``benchmarks/results``. Nothing in it is a measurement of speed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dimr.utils import replacing

from .machine_code.architectures import ARCHITECTURES
from .machine_code.compile import OPERATORS, compile_all
from .machine_code.extension import extension_rows
from .machine_code.listing import BULK
from .report import RESULTS

REGISTERS_PER_SM = 65536
SHARED_RESERVED = 1 << 10  # per block, by the driver
EXTENSION = "pixel_shuffle"


@dataclass(frozen=True)
class Machine:
    """GPU that the share of issue is estimated for."""

    name: str
    multiprocessors: int
    hertz: float
    """Assumed under load."""
    bytes_per_second: float
    """Assumed for a large copy."""
    lanes: dict[str, int]
    """Results per clock and multiprocessor, by unit (CUDA programming guide, throughput of native instructions)."""


MACHINES = {
    80: Machine("A100 80 GB", 108, 1.41e9, 1.75e12, {"all": 128, "float32": 64, "integer": 64, "special": 16}),
    90: Machine("H100 SXM", 132, 1.7e9, 3.0e12, {"all": 128, "float32": 128, "integer": 64, "special": 16}),
}

COLUMNS = (
    "kernel", "warps", "sm", "registers", "spilled", "shared", "occupancy", "loads", "stores", "instr/output",
    "B/output", "issue/memory",
)  # fmt: skip

EXPLANATION = """\
# Kernel configurations, compiled

Read off machine code by `python -m benchmarks.static`; no GPU took part and nothing here is a speed.

- Compiled by: {compilers}.
- Widths that compile to the same code share a line (`D=384|480`), and so do architectures with the same figures.
- shared: bytes per block. A block can have {shared}.
- loads, stores: bytes per global access x how many stand in the code; `TMA`: copies by the tensor memory accelerator.
- instr/output: instructions per element and lane, in one turn of the main loop (depthwise) or in the whole program, for
  the shape among those of the line that leaves most lanes idle. Slow paths inside count as if taken.
- B/output: each tensor read or written once. Empty for matrix products, where neither says much.
- issue/memory: *counted*, not measured: the time to issue the instructions (or to run those of one unit: float32,
  integer, special functions, whichever takes longest) over the time to move the bytes. Above 1 the instructions bind.
  Assumed: {machines}. Not counted for the others.
- Kernels of the extension (nvcc's): one line per kind, with the figures of its instance with the most registers.
"""


def occupancy(registers: int, shared: int, warps: int, architecture: int) -> float:
    """Return the share of a multiprocessor's warps that can be resident at once (CUDA programming guide)."""
    limits = ARCHITECTURES[architecture]
    per_warp = -(-max(registers, 1) * 32 // 256) * 256  # registers are given out in units of 256 per warp
    by_registers = REGISTERS_PER_SM // (per_warp * warps)
    by_shared = limits.shared_per_multiprocessor // (shared + SHARED_RESERVED)
    blocks = min(by_registers, by_shared, limits.warps // warps, limits.blocks)
    return blocks * warps / limits.warps


def issue_over_memory(per_output: dict[str, float], bytes_per_output: float, architecture: int) -> float | None:
    """Divide the time of the busiest unit by the time for memory, per output; None if either is unknown."""
    machine = MACHINES.get(architecture)
    if machine is None or not per_output or not bytes_per_output:
        return None
    clocks = max(per_output[unit] / lanes for unit, lanes in machine.lanes.items())
    seconds = clocks / (machine.multiprocessors * machine.hertz)
    return seconds / (bytes_per_output / machine.bytes_per_second)


def rows_of(operator: str) -> Iterator[dict[str, Any]]:
    for kernel in compile_all([operator], ARCHITECTURES):
        row = {"operator": operator, **asdict(kernel)}
        del row["opcodes"], row["compile_seconds"]
        yield row


def completed(row: dict[str, Any]) -> dict[str, Any]:
    figures = row["registers"], row["shared_bytes"], row["num_warps"], row["architecture"]
    share = issue_over_memory(row["per_output"], row["bytes_per_output"], row["architecture"])
    row["occupancy"] = round(occupancy(*figures), 3)
    row["issue_over_memory"] = None if share is None else round(share, 2)
    return row


def widths(accesses: dict[str, int]) -> str:
    """Format ``{"16": 8, "4": 2}`` as ``16 B x8, 4 B x2``, widest first."""
    by_width = sorted(accesses.items(), key=lambda item: -1e9 if item[0] == BULK else -int(item[0]))
    return ", ".join(f"{width if width == BULK else width + ' B'} x{n}" for width, n in by_width)


def cells(row: dict[str, Any]) -> tuple[Any, ...]:
    """Format a row's columns but that of the architecture, which stands after the second."""
    per_output, share = row["per_output"].get("all"), row["issue_over_memory"]
    return (
        row["name"].replace("|", "\\|"), row["num_warps"], row["registers"], row["spill_bytes"], row["shared_bytes"],
        f"{row['occupancy']:.0%}", widths(row["loads"]), widths(row["stores"]),
        "" if per_output is None else f"{per_output:.1f}", f"{row['bytes_per_output']:g}" if share else "",
        "" if share is None else f"{share:.2f}",
    )  # fmt: skip


def markdown(rows: list[dict[str, Any]], notes: list[str]) -> str:
    assumed = "; ".join(
        f"sm_{architecture} {m.name}, {m.multiprocessors} multiprocessors at {m.hertz / 1e9:g} GHz, "
        f"{m.bytes_per_second / 1e12:g} TB/s"
        for architecture, m in MACHINES.items()
    )
    compilers = _by_architecture((row["compiler"], row["architecture"]) for row in rows)
    shared = _by_architecture((f"{a.shared_per_block >> 10} KB", number) for number, a in ARCHITECTURES.items())
    lines = [
        EXPLANATION.format(compilers=compilers, shared=shared, machines=assumed),
        *(f"{note}\n" for note in notes),
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    alike: dict[tuple[Any, ...], list[int]] = {}
    for row in rows:
        alike.setdefault(cells(row), []).append(row["architecture"])
    for found, architectures in alike.items():
        line = (*found[:2], " ".join(map(str, architectures)), *found[2:])
        lines.append("| " + " | ".join(map(str, line)) + " |")
    return "\n".join(lines) + "\n"


def _by_architecture(values: Iterable[tuple[str, int]]) -> str:
    """Format ``("99 KB", 86), ("99 KB", 89)`` as ``99 KB on sm_86, sm_89``."""
    found: dict[str, dict[str, None]] = {}
    for value, architecture in sorted(values, key=lambda pair: pair[1]):
        found.setdefault(value, {})[f"sm_{architecture}"] = None
    return "; ".join(f"{value} on {', '.join(architectures)}" for value, architectures in found.items())


def as_json(rows: list[dict[str, Any]]) -> str:
    """Format rows as JSON, one line each."""
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"


def collect(operators: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return rows, and notes about what is missing."""
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for operator in operators:
        if operator == EXTENSION:
            found, problem = extension_rows()
            notes += [problem] if problem else []
        else:
            found = list(rows_of(operator))
        sys.stderr.write(f"{operator}: {len(found)} rows\n")
        rows += map(completed, found)
    return sorted(rows, key=lambda row: (row["operator"], row["name"], row["architecture"])), notes


def main(arguments: list[str] | None = None) -> None:
    choices = (*OPERATORS, EXTENSION)
    parser = argparse.ArgumentParser(description="Tabulate what every kernel configuration costs in machine code.")
    parser.add_argument("operators", nargs="*", metavar="operator", help=f"of {', '.join(choices)}; default: all")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for static.json and static.md")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.operators) - set(choices)):
        parser.error(f"no operator is called {', '.join(unknown)}; there are {', '.join(choices)}")
    rows, notes = collect(options.operators or list(choices))
    for name, text in (("static.json", as_json(rows)), ("static.md", markdown(rows, notes))):
        with replacing(options.output / name) as temporary:
            temporary.write_text(text)


if __name__ == "__main__":
    main()
