"""``dimr train``: a run as a recipe describes it."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..optional import require
from ..training.processes import joined_processes, local_device
from ..training.tables import RecipeError
from . import arguments as kinds
from .common import CommandError, pick_device, say

HELP = "train a model as a recipe describes it, on one device or under torchrun on many"
PACKAGES = ("numpy", "PIL", "safetensors", "tqdm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="TOML file, or the name of a recipe that comes along, such as dimr-xl-2r")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where everything goes")
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--resume", action="store_true", help="go on from DIR's newest checkpoint, or begin where there is none"
    )
    start.add_argument("--overwrite", action="store_true", help="start again though DIR holds a run")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="TABLE.KEY=VALUE",
        help="in place of the recipe's value, for example training.batch_size=64; may be given again",
    )  # fmt: skip
    parser.add_argument("--threads", type=kinds.positive_int, help="of each process on a CPU (torch's own choice)")
    kinds.add_device(parser)


def run(arguments: argparse.Namespace) -> int:
    for package in PACKAGES:  # now, not after hours of training
        require(package, "train", "dimr train")
    from ..training.recipe import load_recipe
    from ..training.run import RunFolder, TrainingRun

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    folder = RunFolder(arguments.output)
    try:
        recipe = load_recipe(arguments.recipe, arguments.overrides)
        device = pick_device(arguments.device)
        if device.index is None:
            device = local_device(device.type)
        with joined_processes(device) as processes:
            run = TrainingRun(recipe, folder, device, processes)
            if arguments.overwrite:
                run.clear()
            elif not arguments.resume and folder.checkpoints(recipe.run.keep).newest is not None:
                raise CommandError(f"{folder.root} holds a run: add --resume to go on or --overwrite to start again")
            signal = run.train()
    except RecipeError as error:
        raise CommandError(str(error)) from error
    if signal == 0:
        if processes.first:
            say(f"trained to step {run.trainer.step}; sample with: dimr sample {folder.model} --output samples.png")
        return 0
    if processes.first:
        say(f"stopped after {run.trainer.step} steps, all saved; the same command with --resume goes on.")
    return 128 + signal
