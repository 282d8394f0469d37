"""Two diagrams: each operator relative to its ceiling and to its rivals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dimr.utils import replacing, require

from .records import OURS
from .rows import Row, rival_order

PANELS_ACROSS = 3
PLOTTED_SCOPES = ("target", "large")
INK = "0.25"
# Ours stands out; a rival looks the same in every plot.
STYLES = {
    OURS: ("#0b6bcb", "D"),
    "eager": ("0.55", "o"),
    "compiled": ("#e08a1e", "s"),
    "max-autotune": ("#b5462f", "^"),
    "two kernels": ("#b09a2e", "o"),
    "layer_norm": ("0.25", "P"),
    "rms_norm": ("0.25", "P"),
    "liger": ("#4f9d69", "v"),
    "quack": ("#8a6d4f", "X"),
    "cudnn": ("#8e6bbf", "v"),
    "cudnn nhwc": ("#8e6bbf", "v"),
    "cudnn nchw": ("#8e6bbf", "<"),
    "aten nhwc": ("#3aa6a6", "v"),
    "aten nchw": ("#3aa6a6", "<"),
    "flash": ("#c76b98", "v"),
    "flash_attn": ("#c76b98", "^"),
    "efficient": ("#7a8b2f", "v"),
    "math": ("#5b6abf", "v"),
}
UNKNOWN = ("#111111", "x")

Points = Callable[[Row], dict[str, float]]


def fractions(row: Row) -> dict[str, float]:
    return {name: record.fraction_of_roofline for name, record in row.records.items()}


def save_roofline(path: Path, rows: Sequence[Row]) -> None:
    _save(
        path,
        rows,
        fractions,
        "Fraction of copy bandwidth, or of a large matrix product where that is nearer",
        logarithmic=False,
    )


def save_speed_ups(path: Path, rows: Sequence[Row]) -> None:
    _save(path, rows, Row.speed_ups, "Speed-up over each rival: its time / ours", logarithmic=True)


def panels(rows: Sequence[Row], points: Points) -> dict[tuple[str, str], list[Row]]:
    """Operator and direction -> rows with anything to show: target and large shapes, or all where there are none."""
    shown = [row for row in rows if points(row) and row.ours is not None]
    shown = [row for row in shown if row.any_record.scope in PLOTTED_SCOPES] or shown
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in shown:
        groups.setdefault((row.operator, row.direction), []).append(row)
    return groups


def _save(path: Path, rows: Sequence[Row], points: Points, title: str, logarithmic: bool) -> None:
    figure_module = require("matplotlib.figure", "bench", "a plot of measurements")
    shown = panels(rows, points)
    across = max(1, min(PANELS_ACROSS, len(shown)))
    bands = [list(shown.items())[i : i + across] for i in range(0, len(shown), across)]
    heights = [0.9 + 0.27 * max(len(group) for _, group in band) for band in bands] or [1.5]
    figure = figure_module.Figure(figsize=(max(4.6 * across, 7.5), sum(heights) + 1.3), layout="constrained")
    record = rows[0].any_record
    clock = "CPU, whole calls" if record.on_cpu else "kernels alone"
    figure.suptitle(f"{title}\n{record.device} ({clock})", fontsize=12, color=INK)
    grid = figure.add_gridspec(max(1, len(bands)), across, height_ratios=heights)
    used: dict[str, Any] = {}
    for i, band in enumerate(bands):
        for j, (key, group) in enumerate(band):
            _draw(figure.add_subplot(grid[i, j]), key, group, points, logarithmic, used)
    if used:
        names = sorted(used, key=lambda name: (name != OURS, rival_order(name)))
        labels = ["ours" if name == OURS else name for name in names]
        figure.legend(
            [used[name] for name in names], labels, loc="outside lower center", ncols=min(6, len(names)), frameon=False
        )
    else:
        figure.text(0.5, 0.4, "nothing measured", ha="center", color=INK)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})


def _draw(
    axes: Any, key: tuple[str, str], rows: Sequence[Row], points: Points, logarithmic: bool, used: dict[str, Any]
) -> None:
    axes.axvline(1, color=INK, linewidth=1, linestyle="--")
    largest, smallest = 1.0, 1.0
    for y, row in enumerate(rows):
        for name, value in sorted(points(row).items(), key=lambda item: item[0] == OURS):  # ours on top
            colour, marker = STYLES.get(name, UNKNOWN)
            used[name] = axes.plot(
                value, y, linestyle="none", marker=marker, color=colour, clip_on=False,
                markersize=8 if name == OURS else 6, markeredgecolor=colour if marker == "x" else "white",
                markeredgewidth=1.5 if marker == "x" else 0.6,
            )[0]  # fmt: skip
            largest, smallest = max(largest, value), min(smallest, value)
    axes.set_title(f"{key[0]}, {key[1].replace('_', ' ')}", fontsize=10, loc="left", color=INK)
    axes.set_yticks(range(len(rows)), [_shape_label(row) for row in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(min(0.5, smallest / 1.3), max(4, largest * 1.3))
        _plain_log_ticks(axes)
    else:
        axes.set_xlim(0, max(1.08, largest * 1.05))
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.3, which="major")
    axes.grid(axis="y", alpha=0.15)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _shape_label(row: Row) -> str:
    return row.shape if row.any_record.scope != "large" else f"{row.shape} (large)"


def _plain_log_ticks(axes: Any) -> None:
    ticker = require("matplotlib.ticker", "bench", "a plot of measurements")
    low, high = axes.get_xlim()
    ticks = [t for t in (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128) if low <= t <= high]
    axes.xaxis.set_major_locator(ticker.FixedLocator(ticks))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}x"))
