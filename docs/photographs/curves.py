"""Loss curves of several runs in one picture; see docs/photographs.md.

python docs/photographs/curves.py curves.png NAME=RUN ...
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from dimr.images import smooth
from dimr.model.config import DiMRConfig

WINDOW = 200  # steps that the curves are means over
LAST = 1000  # steps that the stated numbers are means over
STYLES = ("-", "--", ":")  # of the runs
COLOURS = {16: "C0", 32: "C1", 64: "C2"}  # by the size of the prediction


def main(output: str, *runs: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for run, style in zip(runs, STYLES, strict=False):
        name, _, folder = run.partition("=")
        losses, sizes = _losses(Path(folder))
        for i, size in enumerate(sizes):
            label = f"{name}, branch {i}: {size}x{size}"
            mean = smooth(losses, WINDOW)[:, i]
            axes.plot(range(1, len(mean) + 1), mean, style, color=COLOURS[size], label=label)
            logging.info("%s: mean of the last %d steps %.4f", label, LAST, losses[-LAST:, i].mean())
    axes.set(xlabel="step", ylabel=f"mean squared error of the noise, mean of {WINDOW} steps", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(output, dpi=100)


def _losses(run: Path) -> tuple[Tensor, tuple[int, ...]]:
    """Read from the newest checkpoint: ``losses [steps, branches]`` and the sizes of the branches' predictions."""
    newest = max((run / "checkpoints").glob("step-*.pt"))
    state = torch.load(newest, map_location="cpu", weights_only=True)
    return state["losses"], DiMRConfig.from_dict(state["config"]).prediction_sizes


if __name__ == "__main__":
    main(*sys.argv[1:])
