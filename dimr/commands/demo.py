"""``dimr demo``: train a small model on handwritten digits, sample it and measure the samples."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from ..demo.results import begin, run_demo
from ..demo.training import DemoFolder, SamplingSettings, resumed_trainer
from ..training.loop import Trainer
from ..utils import require
from . import arguments as kinds
from .arguments import INTERRUPTED, CommandError, pick_device, say

FIXED_AT_START = ("size", "seed", "steps")
PACKAGES = ("numpy", "sklearn", "matplotlib", "PIL", "safetensors", "tqdm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    usual = SamplingSettings()
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the run")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="go on with the run in DIR")
    start.add_argument("--overwrite", action="store_true", help="start again though DIR holds a run")
    parser.add_argument("--seed", type=kinds.seed, help="decides weights, training and samples (default: 0)")
    parser.add_argument("--size", type=kinds.multiple_of_8, help="of the images, a multiple of 8 (default: 8)")
    parser.add_argument("--steps", type=kinds.positive_int, help="of training (default: 1000)")
    parser.add_argument(
        "--per-class", type=kinds.several, default=usual.per_class, help="samples to measure (%(default)s)"
    )
    parser.add_argument(
        "--sampling-steps", type=kinds.sampling_steps, default=usual.steps, help="model calls (%(default)s)"
    )
    parser.add_argument(
        "--guidance", type=kinds.non_negative_float, default=usual.guidance, help="strength (%(default)s)"
    )
    parser.add_argument(
        "--threads", type=kinds.threads, default=1,
        help="on a CPU (%(default)s: operators this small wait more than they gain where the machine has other work)",
    )  # fmt: skip
    kinds.add_device(parser)


def run(arguments: argparse.Namespace) -> int:
    for package in PACKAGES:  # now rather than after minutes of training
        require(package, "demo", "the demo")
    torch.set_num_threads(arguments.threads)
    folder = DemoFolder(arguments.output)
    sampling = SamplingSettings(arguments.per_class, arguments.sampling_steps, arguments.guidance)
    trainer = _trainer(arguments, folder)
    try:
        report = run_demo(trainer, folder, sampling)
    except KeyboardInterrupt:
        say("stopped at once; what the last save has is kept.")
        return _stopped(folder)
    if report is None:
        say(f"stopped after {trainer.step} of {trainer.settings.steps} steps, all saved.")
        return _stopped(folder)
    _say_results(report, folder)
    return 0 if report["quality"]["passed"] else 1


def _stopped(folder: DemoFolder) -> int:
    say(f"Go on with: dimr demo --output {folder.root} --resume")
    say(f"Sample what there is with: dimr sample {folder.checkpoint} --output digits.png")
    return INTERRUPTED


def _trainer(arguments: argparse.Namespace, folder: DemoFolder) -> Trainer:
    device = pick_device(arguments.device)
    if arguments.resume:
        given = [f"--{name}" for name in FIXED_AT_START if getattr(arguments, name) is not None]
        if given:
            raise CommandError(f"{given[0]} was decided when the run began; leave it out with --resume")
        if not folder.state.is_file():
            raise CommandError(f"--resume: there is no run in {folder.root} (no {folder.state.name})")
        return resumed_trainer(folder, device)
    if folder.state.exists() and not arguments.overwrite:
        raise CommandError(f"{folder.root} holds a run: add --resume to go on with it or --overwrite to start again")
    folder.root.mkdir(parents=True, exist_ok=True)  # a name that cannot be a folder fails here
    return begin(device, arguments.size or 8, arguments.seed or 0, arguments.steps)


def _say_results(report: dict[str, Any], folder: DemoFolder) -> None:
    quality, seconds = report["quality"], report["seconds"]
    classifier, diversity = quality["classifier"], quality["diversity"]
    nearest, deviation = diversity["nearest_training_image"], diversity["pixel_deviation_within_class"]
    say(
        f"{quality['accuracy']:.1%} of the samples are recognised as the class asked for "
        f"(wanted: {quality['wanted_accuracy']:.0%}; the classifier knows "
        f"{classifier['accuracy_on_unseen_real_digits']:.1%} of real digits it was not fitted on)"
    )
    say(
        f"distance to the nearest training digit {nearest['samples']:.2f} "
        f"(held-out digits {nearest['held_out_digits']:.2f}), "
        f"deviation within a class {deviation['samples']:.3f} ({deviation['held_out_digits']:.3f})"
    )
    say(f"{sum(seconds.values()):.0f} s: " + ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items()))
    for path in (folder.samples, folder.losses, folder.report, folder.checkpoint):
        say(f"  {path}")
    if not quality["passed"]:
        say("The samples are NOT good enough: too few are recognised.")
