"""``dimr evaluate``: measure samples against a reference."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path

from ..checkpoints.weights import CONFIG
from ..evaluation import EvaluationReport, EvaluationSettings, FeatureExtractor, evaluate
from ..evaluation.extractors import WEIGHTS_NAME, load_extractor, load_inception
from ..training.saved import is_run
from ..utils import describe_environment, require, write_json
from . import arguments as kinds
from .arguments import CommandError, pick_device, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = EvaluationSettings()
    parser.add_argument(
        "samples", type=Path, metavar="SAMPLES", help="folder of pictures, or .npz with arr_0 uint8 [N, H, W, 3]"
    )
    parser.add_argument(
        "--reference", type=Path, required=True, metavar="REF",
        help="the same, or .npz with statistics: mu, sigma and perhaps mu_s, sigma_s",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the report as JSON")
    parser.add_argument(
        "--save-reference", type=Path, metavar="FILE.npz", help="write the reference's statistics, for the next time"
    )
    parser.add_argument(
        "--features", metavar="MODULE:CALLABLE|FILE",
        help="another network: a callable that returns a torch.nn.Module, or a .pt2 or TorchScript file; it gets uint8 "
        "[B, 3, H, W] and returns features [B, D], or a dictionary of features, logits and spatial (default: FID's "
        "Inception)",
    )  # fmt: skip
    parser.add_argument("--name", help="what to call that network (default: the callable's or the file's name)")
    parser.add_argument(
        "--resize", type=kinds.positive_int, metavar="S",
        help="resize images to SxS for that network, bicubic with antialiasing (default: as they are)",
    )  # fmt: skip
    parser.add_argument(
        "--inception-weights", type=Path, metavar="FILE",
        help=f"{WEIGHTS_NAME} (default: where torch.hub keeps it; nothing is downloaded)",
    )  # fmt: skip
    parser.add_argument(
        "--crop", type=kinds.positive_int, metavar="S",
        help="reduce and crop the pictures of folders to SxS first (default: they must be of one size)",
    )  # fmt: skip
    parser.add_argument(
        "--exif-orientation", action=argparse.BooleanOptionalAction, default=True,
        help="turn pictures as their EXIF data says; ADM's preprocessing of ImageNet does not",
    )  # fmt: skip
    for option, help_text in (
        ("batch-size", "images at a time"),
        ("neighbours", "k of precision and recall"),
        ("splits", "of the Inception Score"),
        ("manifold-images", "precision and recall are of at most so many of each"),
    ):
        default = getattr(defaults, option.replace("-", "_"))
        parser.add_argument(f"--{option}", type=kinds.positive_int, default=default, help=f"{help_text} (%(default)s)")
    kinds.add_device(parser)


def run(arguments: argparse.Namespace) -> int:
    for package in ("numpy", "PIL", "tqdm"):
        require(package, "evaluate", "dimr evaluate")
    if arguments.save_reference is not None and arguments.save_reference.suffix != ".npz":
        raise CommandError(f"--save-reference: wanted a name ending in .npz, got {arguments.save_reference}")
    for path in (arguments.samples, arguments.reference):
        if is_run(path) or (path / CONFIG).is_file():
            raise CommandError(
                f"{path} holds a model, not pictures: dimr sample {path} --output samples.npz draws some"
            )
    device = pick_device(arguments.device)
    extractor = _extractor(arguments)
    extractor.module.to(device)
    settings = EvaluationSettings(
        **{field.name: getattr(arguments, field.name) for field in dataclasses.fields(EvaluationSettings)}
    )
    report = evaluate(
        arguments.samples,
        arguments.reference,
        extractor,
        settings,
        save_reference=arguments.save_reference,
        progress=True,
    )
    _show(report)
    if arguments.output is not None:
        write_json(arguments.output, report.to_dict() | {"environment": describe_environment(device)})
        say(f"wrote {arguments.output}")
    return 0


def _extractor(arguments: argparse.Namespace) -> FeatureExtractor:
    if arguments.features is None:
        for option in ("name", "resize"):
            if getattr(arguments, option) is not None:
                raise CommandError(f"--{option}: only with --features, Inception has its own")
        return load_inception(arguments.inception_weights)
    if arguments.inception_weights is not None:
        raise CommandError("--inception-weights: not with --features")
    sys.path.insert(0, os.getcwd())  # as python -m does: the callable may be in a file there
    return load_extractor(arguments.features, arguments.name, arguments.resize)


def _show(report: EvaluationReport) -> None:
    say(report.table())
    for warning in report.warnings:
        say(f"warning: {warning}")
