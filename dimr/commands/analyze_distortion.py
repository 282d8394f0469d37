"""``dimr analyze distortion``: the samples that a classifier does not recognise, beside those that it does."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..analysis.classifiers import Classifier, digit_classifier, module_classifier, torchvision_classifier
from ..analysis.distortion import as_json, picture, score, split
from ..analysis.samples import Samples, read_samples
from ..files import write_json
from ..images import save_image
from ..optional import require
from . import arguments as kinds
from .common import CommandError, pick_device, say

HELP = "show the samples that a classifier does not take for what was asked for (the paper's Figure 5)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
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


def run(arguments: argparse.Namespace) -> int:
    require("PIL", "demo", "writing pictures")
    require("tqdm", "demo", "the progress bar")
    device = pick_device(arguments.device)
    samples = read_samples(arguments.samples)
    count = min(arguments.count, samples.count)
    classifier = _classifier(arguments, samples, device)
    scores = score(samples, classifier, arguments.batch_size, progress=True)
    parts = split(scores, arguments.threshold)
    found = {"source": str(arguments.samples), "classifier": arguments.classifier}
    found |= as_json(scores, parts, count)
    write_json(arguments.output / "distortion.json", found)
    save_image(arguments.output / "distortion.png", picture(scores, parts, count))
    accuracy = "" if found["accuracy"] is None else f", {found['accuracy']:.1%} recognised as what was asked for"
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
