"""The report's text: a summary, the targets, host times and every measurement, as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence

from ..targets import TARGET_SCOPE, Outcome, evaluate
from .records import OURS, Record
from .rows import RIVALS, Row, rival_order

SUMMARY_MARKERS = ("<!-- summary -->", "<!-- end of summary -->")
FULL_COLUMNS = (
    "operator", "direction", "shape", "us", "GB/s", "of copy", "TFLOP/s",
    *(f"x {rival}" for rival in RIVALS), "x others", "fastest rival", "host us", "peak MB", "error",
)  # fmt: skip
# Columns that are dropped if they are empty, as on a CPU.
MAY_BE_LEFT_OUT = ("TFLOP/s", "x others", "host us", "peak MB")
VERSIONS = {"torch": "torch", "triton": "Triton", "cuda": "CUDA", "python": "Python"}


def report(rows: Sequence[Row]) -> str:
    parts = [
        _heading(rows),
        SUMMARY_MARKERS[0] + "\n" + _table(*summary(rows)) + "\n" + SUMMARY_MARKERS[1],
        "![Fraction of the roofline](roofline.png)\n\n![Speed-up over each rival](speed_up.png)",
        "## Targets\n\n" + _on_targets(rows) + "\n\n" + _table(*targets(rows)),
    ]
    if not _on_cpu(rows):
        explained = "Microseconds that one forward call keeps the host, median over the shapes."
        parts.append(f"## Host time\n\n{explained}\n\n" + _table(*host_times(rows)))
    parts.append("## Every measurement\n\n" + _legend(rows) + "\n\n" + _table(*every_measurement(rows)))
    return "\n\n".join(parts + _notes(rows)) + "\n"


def _on_cpu(rows: Sequence[Row]) -> bool:
    return rows[0].any_record.on_cpu


def _on_targets(rows: Sequence[Row]) -> str:
    if _on_cpu(rows):
        return "For a CPU with 2 cores; the worst shape counts. The other targets are for a GPU."
    return "Set for bfloat16 at batch 64 on an H100; the worst shape counts. No figure, no verdict."


def _heading(rows: Sequence[Row]) -> str:
    records = [record for row in rows for record in row.records.values()]
    first = records[0]
    lines = [f"# Measured on {first.device}", ""]
    if first.on_cpu:
        lines += ["**CPU figures.** Times are those of whole calls; nothing here tells of a GPU.", ""]
    versions = ", ".join(f"{name} {_listed(getattr(r, key) for r in records)}" for key, name in VERSIONS.items())
    copies = _range([record.copy_gigabytes_per_second for record in records], ".0f")
    lines += [
        f"Written by `python -m benchmarks.report` from `records.json`. {versions}; "
        f"{_listed(r.dtype for r in records)}. Copy bandwidth {copies} GB/s{_multiply_adds(records)}, measured in the "
        f"same run."
    ]
    return "\n".join(lines)


def _multiply_adds(records: Sequence[Record]) -> str:
    found = [r.multiply_add_teraflops_ceiling for r in records if r.multiply_add_teraflops_ceiling is not None]
    return f", multiply-adds in registers {_range([1e3 * value for value in found], '.0f')} GFLOP/s" if found else ""


def _listed(values: Iterable[str | None]) -> str:
    return " and ".join(sorted({value or "none" for value in values}))


def _range(values: Sequence[float], format_: str) -> str:
    return " to ".join(dict.fromkeys((format(min(values), format_), format(max(values), format_))))


def summary(rows: Sequence[Row]) -> tuple[Sequence[str], Iterator[Sequence[str]]]:
    """Summarise each operator and direction in a line, over the target shapes, or over all if none of them is there."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.operator, row.direction), []).append(row)
    columns = ("operator", "direction", "of copy bandwidth", "x eager", "x compiled", "host us")
    lines = (_summary_line(*key, _main_rows(group)) for key, group in groups.items())
    if _on_cpu(rows):  # on a CPU the host's time adds no information
        return columns[:-1], (line[:-1] for line in lines)
    return columns, lines


def _main_rows(rows: Sequence[Row]) -> Sequence[Row]:
    return [row for row in rows if row.any_record.scope == TARGET_SCOPE] or rows


def _summary_line(operator: str, direction: str, rows: Sequence[Row]) -> Sequence[str]:
    ours = [row.ours for row in rows if row.ours is not None]
    speed_ups = [row.speed_ups() for row in rows]
    return (
        operator,
        _words(direction),
        _range([record.fraction_of_copy for record in ours], ".0%") if ours else "",
        *(_range(found, ".2f") if (found := [s[r] for s in speed_ups if r in s]) else "" for r in RIVALS[:2]),
        f"{statistics.median(record.host_us for record in ours):.0f}" if ours else "",
    )


def targets(rows: Sequence[Row]) -> tuple[Sequence[str], Iterator[Sequence[str]]]:
    outcomes = (outcome for outcome in evaluate(rows) if outcome.target.on_cpu == _on_cpu(rows))
    return ("operator", "direction", "target", "worst measured", "at", "verdict"), map(_target_line, outcomes)


def _target_line(outcome: Outcome) -> Sequence[str]:
    target = outcome.target
    low, high = target.widths
    widths = f", {low} wide" if low == high else f", {low} to {high} wide" if target.limits_width else ""
    value, at = "", ""
    if outcome.values:
        worst, row = outcome.values[0]
        value = {"fraction_of_copy": f"{worst:.1%}", "speed_up": f"{worst:.2f}x", "host_us": f"{worst:.1f} us"}[
            target.metric
        ]
        at = row.shape
    return outcome.operator, _words(outcome.direction), f"{target}{widths}", value, at, outcome.verdict


def host_times(rows: Sequence[Row]) -> tuple[Sequence[str], Iterator[Sequence[str]]]:
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        for name, record in row.records.items() if row.direction == "forward" else ():
            found.setdefault(row.operator, {}).setdefault(name, []).append(record.host_us)
    names = sorted({name for times in found.values() for name in times}, key=lambda n: (n != OURS, rival_order(n)))
    lines = (
        (operator, *(f"{statistics.median(times[name]):.1f}" if name in times else "" for name in names))
        for operator, times in found.items()
    )
    return ("operator", *("ours" if name == OURS else name for name in names)), lines


def _legend(rows: Sequence[Row]) -> str:
    clock = "`wall us`: the whole call" if _on_cpu(rows) else "`us`: the kernels alone"
    ceiling = "multiply-adds in registers" if _on_cpu(rows) else "a large product's"
    return (
        f"{clock}; `of copy`: bytes moved per second over the copy bandwidth, above 100% where a cache holds them; "
        f"`TFLOP/s`: in brackets, of {ceiling}; `x rival`: its time over ours; a star: see the notes; `error`: "
        "largest difference from float64 over the largest value. An empty cell was not measured."
    )


def _notes(rows: Sequence[Row]) -> list[str]:
    """List the notes of all records, each once."""
    found: dict[str, None] = {}
    for row in rows:
        for name, record in row.records.items():
            who = "ours" if name == OURS else name
            if record.note:
                found[f"- {row.operator}, {who}: {record.note}"] = None
            if record.kernel_timing not in (None, "cuda graph"):
                found[f"- {row.operator}, {who}, {_words(row.direction)}: timed by {record.kernel_timing}"] = None
    return ["## Notes\n\n" + "\n".join(found)] if found else []


def every_measurement(rows: Sequence[Row]) -> tuple[Sequence[str], list[Sequence[str]]]:
    several = len({row.dtype for row in rows}) > 1
    lines = [full_line(row, f"{row.shape} {row.dtype}" if several else row.shape) for row in rows]
    kept = [i for i, name in enumerate(FULL_COLUMNS) if name not in MAY_BE_LEFT_OUT or any(line[i] for line in lines)]
    names = ["wall us" if name == "us" and _on_cpu(rows) else name for name in FULL_COLUMNS]
    return [names[i] for i in kept], [[line[i] for i in kept] for line in lines]


def full_line(row: Row, shape: str) -> Sequence[str]:
    ours, speed_ups = row.ours, row.speed_ups()
    others = ", ".join(f"{_starred(row, name)} {ratio:.2f}" for name, ratio in speed_ups.items() if name not in RIVALS)
    over_rivals = (_cell(speed_ups.get(rival), ".2f") for rival in RIVALS)
    return (
        row.operator, _words(row.direction), shape, *_own_cells(ours), *over_rivals, others, _fastest(row),
        *_own_costs(ours),
    )  # fmt: skip


def _own_costs(ours: Record | None) -> Sequence[str]:
    """Format host us, peak MB, error. On a CPU the host's time is that of the whole call."""
    if ours is None:
        return [""] * 3
    peak = ours.peak_memory_bytes
    return (
        _cell(None if ours.on_cpu else ours.host_us, ".1f"),
        _cell(None if peak is None else peak / 1e6, ".1f"),
        _cell(ours.relative_error_float64, ".1e"),
    )


def _own_cells(ours: Record | None) -> Sequence[str]:
    """Format us, GB/s, of copy, TFLOP/s."""
    if ours is None:
        return [""] * 4
    us = ours.microseconds
    return (
        _cell(us, ".1f"),
        _cell(ours.gigabytes_per_second, ".0f"),
        _cell(ours.fraction_of_copy, ".0%"),
        _teraflops(ours),
    )


def _teraflops(record: Record) -> str:
    if not (record.flops and record.microseconds):
        return ""
    teraflops, fraction = record.flops / record.microseconds / 1e6, record.fraction_of_arithmetic
    return f"{teraflops:.3g}" + (f" ({fraction:.0%})" if fraction is not None else "")


def _fastest(row: Row) -> str:
    times = {name: r.microseconds for name, r in row.rivals.items() if r.microseconds is not None}
    return f"{_starred(row, name := min(times, key=times.__getitem__))} {times[name]:.1f}" if times else ""


def _starred(row: Row, name: str) -> str:
    """A star where the record has a note, as on rivals that do less work."""
    return name + "*" * bool(row.records[name].note)


def _cell(value: float | None, format_: str) -> str:
    return "" if value is None else format(value, format_)


def _words(direction: str) -> str:
    return direction.replace("_", " ")


def _table(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(rows + ["| " + " | ".join(line) + " |" for line in lines])
