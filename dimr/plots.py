"""Diagrams."""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import Tensor

from .files import replacing
from .optional import require


def smooth(values: Tensor, window: int) -> Tensor:
    """Mean over each value and up to ``window - 1`` before it: ``[N, K]`` -> ``[N, K]``."""
    sums = values.double().cumsum(dim=0)
    means = sums.clone()
    means[window:] -= sums[:-window]
    for i in range(len(means)):
        means[i] /= min(i + 1, window)
    return means


def save_loss_curves(path: str | os.PathLike[str], losses: Tensor, resolutions: Sequence[int]) -> None:
    """``losses [steps, branches]``, each step faint and their running mean, one colour to each branch."""
    figure_module = require("matplotlib.figure", "demo", "the loss curves")
    figure = figure_module.Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    losses = losses.cpu()
    running = smooth(losses, window=max(1, len(losses) // 40))
    steps = range(1, len(losses) + 1)
    for i, resolution in enumerate(resolutions):
        colour = f"C{i}"
        axes.plot(steps, losses[:, i], color=colour, alpha=0.2, linewidth=0.6)
        axes.plot(steps, running[:, i], color=colour, label=f"branch {i}: {resolution}x{resolution}")
    axes.set(xlabel="step", ylabel="mean squared error of the noise", yscale="log", title="Loss of each branch")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
