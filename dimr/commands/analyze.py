"""``dimr analyze``: make the paper's Figures 3, 5 and 6 for a model or for samples."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from ..analysis.distortion import (
    Classifier,
    Samples,
    digit_classifier,
    distortion_as_json,
    module_classifier,
    picture,
    read_samples,
    score,
    split,
    torchvision_classifier,
)
from ..analysis.time_curves import (
    COMPONENTS,
    as_json,
    explain,
    sampling_timesteps,
    save_explained_variance,
    time_curves,
)
from ..images import save_image
from ..model.network import DiMR
from ..model.variants import create_model, model_config
from ..utils import require, write_json
from . import arguments as kinds
from .arguments import CommandError, load_checkpoint, pick_device, say

PCA_HELP = "how many directions each scale and shift moves in along sampling (the paper's Figures 3 and 6)"
DISTORTION_HELP = "show the samples that a classifier does not recognise as the class asked for (the paper's Figure 5)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    subparsers = parser.add_subparsers(dest="analysis", required=True, metavar="ANALYSIS")
    pca = subparsers.add_parser("pca", help=PCA_HELP, description=PCA_HELP)
    _add_pca_arguments(pca)
    pca.set_defaults(analyze=_pca)
    distortion = subparsers.add_parser("distortion", help=DISTORTION_HELP, description=DISTORTION_HELP)
    _add_distortion_arguments(distortion)
    distortion.set_defaults(analyze=_distortion)


def run(arguments: argparse.Namespace) -> int:
    return arguments.analyze(arguments)


def _add_pca_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", help="a checkpoint's or a run's folder, or a model's name (untrained, its norms stand still)"
    )
    kinds.add_weights(parser)
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="pca.json and pca.png are written here"
    )
    parser.add_argument(
        "--steps", type=kinds.sampling_steps, default=50, help="model calls of the sampler (%(default)s)"
    )
    parser.add_argument(
        "--components", type=kinds.components, default=COMPONENTS, help="components shown (%(default)s)"
    )


def _pca(arguments: argparse.Namespace) -> int:
    require("matplotlib", "demo", "the plot of explained variance")
    if arguments.steps < 2:
        raise CommandError("--steps: wanted at least 2, principal components need two timesteps")
    model = _model(arguments.model, arguments.weights, arguments.step)
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


def _model(source: str, weights: str | None, step: int | None) -> DiMR:
    if Path(source).exists():
        return load_checkpoint(Path(source), weights=weights, step=step).model
    try:
        model_config(source)
    except ValueError as error:
        raise CommandError(f"{source!r} is neither a checkpoint folder nor a model: {error}") from error
    return create_model(source)


def _add_distortion_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("samples", type=Path, help=".npz or .safetensors of dimr sample, or a folder of pictures")
    parser.add_argument(
        "--classifier", required=True, metavar="NAME",
        help="digits; a torchvision model's name, with --weights; MODULE:CALLABLE, or a .pt2 or TorchScript file, "
        "which take uint8 [B, 3, H, W] and return logits",
    )  # fmt: skip
    parser.add_argument("--weights", type=Path, metavar="FILE", help="state dict of the torchvision model")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="distortion.json and .png go here")
    parser.add_argument(
        "--threshold", type=kinds.share, default=0.5,
        help="a lower confidence in the class asked for is low (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--count", type=kinds.positive_int, default=16, help="samples shown of either (%(default)s)")
    parser.add_argument("--batch-size", type=kinds.positive_int, default=64, help="images at a time (%(default)s)")
    kinds.add_device(parser)


def _distortion(arguments: argparse.Namespace) -> int:
    require("PIL", "demo", "writing pictures")
    require("tqdm", "demo", "the progress bar")
    device = pick_device(arguments.device)
    samples = read_samples(arguments.samples)
    count = min(arguments.count, samples.count)
    classifier = _classifier(arguments, samples, device)
    scores = score(samples, classifier, arguments.batch_size, progress=True)
    parts = split(scores, arguments.threshold)
    found = {"source": str(arguments.samples), "classifier": arguments.classifier}
    found |= distortion_as_json(scores, parts, count)
    write_json(arguments.output / "distortion.json", found)
    save_image(arguments.output / "distortion.png", picture(scores, parts, count))
    accuracy = "" if found["accuracy"] is None else f", {found['accuracy']:.1%} recognised as the class asked for"
    say(f"{found['low']} of {found['samples']} below a confidence of {arguments.threshold:g}{accuracy}")
    say(f"wrote {arguments.output / 'distortion.json'} and distortion.png")
    return 0


def _classifier(arguments: argparse.Namespace, samples: Samples, device: torch.device) -> Classifier:
    name, weights = arguments.classifier, arguments.weights
    if weights is not None:
        return torchvision_classifier(name, weights, device)
    if name != "digits":
        if ":" not in name and not Path(name).is_file():
            raise CommandError(
                f"--classifier: wanted digits, a torchvision model's name with --weights, MODULE:CALLABLE or a file; "
                f"got {name!r}"
            )
        return module_classifier(name, device)
    _, C, H, W = samples.images([0]).shape
    if (C, H) != (1, W) or W % 8:
        raise CommandError(f"--classifier digits: wanted images of 1xSxS, S a multiple of 8, found {C}x{H}x{W}")
    return digit_classifier(W)
