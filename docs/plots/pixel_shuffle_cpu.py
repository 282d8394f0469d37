"""Plot of the measured times in performance.md: ``python docs/plots/pixel_shuffle_cpu.py``.

The figures go into the picture's description too, where a test compares them with the table.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

DOCS = Path(__file__).parents[1]
PICTURE = DOCS / "pixel_shuffle_cpu.png"
ROW = re.compile(r"^\| (\d+ x \d+ x \d+, C = \d+, \w+) \| \d+ \| (\S+) ms \| (\S+) ms \|", flags=re.MULTILINE)


def measured() -> list[tuple[str, float, float]]:
    """(shape and dtype, milliseconds eager, milliseconds in C++) of each row."""
    rows = ROW.findall((DOCS / "performance.md").read_text(encoding="utf-8"))
    return [(shape, float(eager), float(fused)) for shape, eager, fused in rows]


def draw() -> None:
    from matplotlib.figure import Figure

    rows = measured()[::-1]
    figure = Figure(figsize=(7.5, 3), layout="constrained")
    axes = figure.subplots()
    for i, (_, eager, fused) in enumerate(rows):
        for offset, time, colour, label in (
            (0.2, eager, "tab:gray", "eager PyTorch"),
            (-0.2, fused, "tab:blue", "C++"),
        ):
            bar = axes.barh(i + offset, time / eager, 0.38, color=colour, label=label if i == 0 else None)
            axes.bar_label(bar, [f"{time:g} ms"], padding=3, fontsize=8)
    axes.set_yticks(range(len(rows)), [shape for shape, *_ in rows], fontsize=8)
    axes.set_xlim(0, 1.15)
    axes.set_xlabel("time of pixel_shuffle_add, NHWC, forward, over that of eager PyTorch")
    axes.set_title("AMD EPYC, 2 threads, torch 2.13, CPU", fontsize=9)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    partial = PICTURE.with_suffix(".partial.png")
    figure.savefig(partial, dpi=120, metadata={"Description": json.dumps(rows), "Software": None})
    partial.replace(PICTURE)


if __name__ == "__main__":
    draw()
