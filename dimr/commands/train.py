"""``dimr train``: train a model as a recipe describes."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..distributed import Processes, joined_processes
from ..training.recipe import RecipeError
from ..utils import exclusive_lock, require
from . import arguments as kinds
from .arguments import CommandError, pick_own_device, say

if TYPE_CHECKING:
    from ..training.recipe import Recipe
    from ..training.run import RunFolder


PACKAGES = ("numpy", "PIL", "safetensors", "tqdm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="TOML file, or the name of a recipe that comes along, such as dimr-xl-2r")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the run")
    start = parser.add_mutually_exclusive_group()
    start.add_argument(
        "--resume",
        action="store_true",
        help="continue from DIR's newest checkpoint, or begin if there is none; settings may have changed",
    )
    start.add_argument("--overwrite", action="store_true", help="start again though DIR holds a run")
    parser.add_argument(
        "--step", type=kinds.positive_int, metavar="N",
        help="with --resume: go back to the checkpoint of this step; the later ones are deleted",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="TABLE.KEY=VALUE",
        help="in place of the recipe's value, for example training.batch_size=64; may be given again",
    )  # fmt: skip
    parser.add_argument(
        "--init", type=Path, metavar="PATH",
        help="start from the weights of a run, a model's folder or a published file, perhaps of other classes",
    )  # fmt: skip
    parser.add_argument("--threads", type=kinds.threads, help="of each process on a CPU (torch's own choice)")
    kinds.add_device(parser)


def run(arguments: argparse.Namespace) -> int:
    for package in PACKAGES:  # now rather than after hours of training
        require(package, "train", "dimr train")
    from ..training.recipe import load_recipe
    from ..training.run import RunFolder

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.step is not None and not arguments.resume:
        raise CommandError("--step: it says where --resume goes on; give that too")
    folder = RunFolder(arguments.output)
    try:
        recipe = load_recipe(arguments.recipe, arguments.overrides)
        if arguments.init is not None:
            recipe = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, init=str(arguments.init)))
        device = pick_own_device(arguments.device)
        with joined_processes(device) as processes:
            signal, step = _train(arguments, recipe, folder, device, processes)
    except RecipeError as error:
        raise CommandError(str(error)) from error
    if processes.is_main and signal == 0:
        say(f"trained to step {step}; sample with: dimr sample {folder.root} --output samples.png")
    elif processes.is_main:
        say(f"stopped after {step} steps, all saved; the same command with --resume goes on.")
    return 128 + signal if signal else 0


def _train(
    arguments: argparse.Namespace, recipe: Recipe, folder: RunFolder, device: torch.device, processes: Processes
) -> tuple[int, int]:
    """Train; return the signal that ended the run, or 0, and the number of steps. No reference to ``run`` is left."""
    from ..training.run import TrainingRun

    run = TrainingRun(recipe, folder, device, processes, arguments.overwrite)
    with contextlib.ExitStack() as stack:
        processes.run_on_main(lambda: stack.enter_context(exclusive_lock(folder.root)), CommandError)
        if not (arguments.overwrite or arguments.resume) and run.checkpoints.newest is not None:
            raise CommandError(f"{folder.root} holds a run: add --resume to go on or --overwrite to start again")
        return run.train(arguments.step), run.trainer.step
