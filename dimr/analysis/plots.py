"""Diagrams of the analyses."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..files import replacing
from ..optional import require
from .principal import Explained, kinds


def save_explained_variance(path: str | os.PathLike[str], found: Sequence[Explained], title: str) -> None:
    """A panel to each kind, a bar to each layer: the shares of its first principal components, one on the other.

    Layers that do not move have no bar; lines stand between branches.
    """
    figure_module = require("matplotlib.figure", "demo", "the plot of explained variance")
    rows = kinds(found)
    figure = figure_module.Figure(figsize=(10, 1 + 2.2 * len(rows)), layout="constrained")
    for axes, kind in zip(figure.subplots(len(rows), squeeze=False)[:, 0], rows, strict=True):
        curves = [e for e in found if e.curve.kind == kind]
        ratios = [e.ratios or () for e in curves]
        bottoms = [0.0] * len(curves)
        for i in range(max(map(len, ratios))):
            heights = [r[i] if r else 0.0 for r in ratios]
            axes.bar(range(len(curves)), heights, width=0.9, bottom=bottoms, label=f"component {i + 1}")
            bottoms = [b + h for b, h in zip(bottoms, heights, strict=True)]
        for i in range(1, len(curves)):
            if curves[i].curve.branch != curves[i - 1].curve.branch:
                axes.axvline(i - 0.5, color="black", linewidth=0.8)
        axes.set(ylim=(0, 1), xlim=(-0.5, len(curves) - 0.5), ylabel=f"{kind}: variance explained")
    axes.set_xlabel("layer, lowest resolution first")
    if any(e.ratios for e in found):
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=8)
    figure.suptitle(title)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
