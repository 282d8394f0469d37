"""``dimr analyze``: the paper's Figures 3, 5 and 6 for a model or samples of one's own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..analysis.curves import sampling_timesteps, time_curves
from ..analysis.plots import save_explained_variance
from ..analysis.principal import COMPONENTS, as_json, explain
from ..files import write_json
from ..network import DiMR
from ..optional import require
from ..variants import create_model, model_config
from . import analyze_distortion
from . import arguments as kinds
from .common import CommandError, load_checkpoint, say

HELP = "principal components of a model's norms over time; distorted samples as a classifier sees them"
PCA_HELP = "how many directions each scale and shift moves in along sampling (the paper's Figures 3 and 6)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    subparsers = parser.add_subparsers(dest="analysis", required=True, metavar="ANALYSIS")
    pca = subparsers.add_parser("pca", help=PCA_HELP, description=PCA_HELP)
    pca.add_argument("model", help="a checkpoint folder, or a model's name (untrained, its norms stand still)")
    pca.add_argument("--output", type=Path, required=True, metavar="DIR", help="pca.json and pca.png are written here")
    pca.add_argument("--steps", type=kinds.sampling_steps, default=50, help="model calls of the sampler (%(default)s)")
    pca.add_argument("--components", type=kinds.components, default=COMPONENTS, help="components shown (%(default)s)")
    pca.set_defaults(analyze=_pca)
    distortion = subparsers.add_parser("distortion", help=analyze_distortion.HELP, description=analyze_distortion.HELP)
    analyze_distortion.add_arguments(distortion)
    distortion.set_defaults(analyze=analyze_distortion.run)


def run(arguments: argparse.Namespace) -> int:
    return arguments.analyze(arguments)


def _pca(arguments: argparse.Namespace) -> int:
    require("matplotlib", "demo", "the plot of explained variance")
    if arguments.steps < 2:
        raise CommandError("--steps: wanted at least 2, principal components need two timesteps")
    model = _model(arguments.model)
    timesteps = sampling_timesteps(arguments.steps)
    try:
        curves = time_curves(model, timesteps)
    except ValueError as error:
        raise CommandError(str(error)) from error
    found = explain(curves, arguments.components)
    report: dict[str, Any] = {"model": arguments.model, "norm": model.config.norm, "timesteps": timesteps}
    report |= as_json(found)
    write_json(arguments.output / "pca.json", report)
    title = f"{arguments.model}: principal components over {arguments.steps} timesteps"
    save_explained_variance(arguments.output / "pca.png", found, title)
    for kind, summary in report["summary"].items():
        say(f"{kind}: {_in_words(summary)}")
    say(f"wrote {arguments.output / 'pca.json'} and pca.png")
    return 0


def _in_words(summary: dict[str, Any]) -> str:
    means, layers = summary["mean_cumulative"], summary["layers"]
    if means is None:
        return f"{layers} layers, none of which moves with the time"
    words = f"{layers} layers, {summary['constant']} constant; the first component explains {means[0]:.1%}"
    return words + (f", the first two {means[1]:.1%}" if len(means) > 1 else "") + ", mean over layers"


def _model(source: str) -> DiMR:
    if Path(source).exists():
        return load_checkpoint(Path(source))
    try:
        model_config(source)
    except ValueError as error:
        raise CommandError(f"{source!r} is neither a checkpoint folder nor a model: {error}") from error
    return create_model(source)
