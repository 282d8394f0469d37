"""Shared parts of the subcommands: types of arguments, which say what was wanted; devices; checkpoints."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.weights import CONFIG, KINDS, SavedWeights, model_of, read_config, read_model_folder
from ..distributed import local_device
from ..model.network import DiMR
from ..sampling.plan import fingerprint
from ..training.saved import is_run, read_weights
from ..utils import UserError, file_sha256

logger = logging.getLogger(__name__)

MAX_INT = 2**31 - 1
MAX_SIDE = 1024
MAX_COMPONENTS = 64
MAX_THREADS = 1024
MAX_STEPS = 10_000  # ten times the levels of the noise schedule
INTERRUPTED = 130  # exit code after Ctrl-C


class CommandError(UserError):
    """Bad input of a subcommand; the message is one line."""


def say(text: str) -> None:
    """Write a result to stdout."""
    sys.stdout.write(text + "\n")


def _parsed(text: str, kind: Callable[[str], Any], fits: Callable[[Any], bool], wanted: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise argparse.ArgumentTypeError(f"wanted {wanted}, got {text!r}")
    return value


def _at_least(least: int, text: str, most: int = MAX_INT) -> int:
    return _parsed(text, int, lambda n: least <= n <= most, f"a whole number of at least {least}, at most {most}")


def _up_to(most: int, text: str) -> int:
    return _parsed(text, int, lambda n: 1 <= n <= most, f"a whole number from 1 to {most}")


def positive_int(text: str) -> int:
    return _at_least(1, text)


def count(text: str) -> int:
    return _at_least(0, text)


def sampling_steps(text: str) -> int:
    return _at_least(1, text, MAX_STEPS)


def components(text: str) -> int:
    return _up_to(MAX_COMPONENTS, text)


def threads(text: str) -> int:
    return _up_to(MAX_THREADS, text)


def several(text: str) -> int:
    return _at_least(2, text)


def multiple_of_8(text: str) -> int:
    return _parsed(text, int, lambda n: 8 <= n <= MAX_SIDE and n % 8 == 0, f"a multiple of 8 up to {MAX_SIDE}")


def seed(text: str) -> int:
    return _parsed(text, int, lambda n: 0 <= n < 2**63, "a whole number from 0 to 2^63 - 1")


def non_negative_float(text: str) -> float:
    return _parsed(text, float, lambda x: 0 <= x < math.inf, "a finite number of at least 0")


def positive_float(text: str) -> float:
    return _parsed(text, float, lambda x: 0 < x < math.inf, "a finite number above 0")


def share(text: str) -> float:
    return _parsed(text, float, lambda x: 0 < x <= 1, "a number above 0, at most 1")


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: the GPU if there is one)")


def pick_device(name: str | None) -> torch.device:
    """Return the named device, or the best one. A device that does not exist is a :class:`CommandError`."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise CommandError(f"--device: wanted cpu, cuda or cuda:N, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise CommandError(f"--device: wanted cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise CommandError(f"--device: {name} is not there, this machine has {count} usable GPUs")
    return device


def pick_own_device(name: str | None) -> torch.device:
    """Call :func:`pick_device`; unless a GPU is named by its number, each process of torchrun gets its own."""
    device = pick_device(name)
    return local_device(device.type) if device.index is None else device


def add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights", choices=KINDS, help="of a run: the average (ema, the default), or the trained weights (raw)"
    )
    parser.add_argument(
        "--step", type=positive_int, metavar="N", help="of a run: the checkpoint of this step (default: the newest)"
    )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model that a command works with, in evaluation mode.

    Attributes:
        folder: the folder that may hold the names of its classes.
        identity: by which an interrupted run recognises the same weights.
    """

    model: DiMR
    folder: Path
    identity: str


def load_checkpoint(
    path: Path,
    device: torch.device | str = "cpu",
    weights: str | None = None,
    step: int | None = None,
    report: bool = True,
) -> Checkpoint:
    """Load the model in a checkpoint folder or, as ``weights`` and ``step`` say, of a run; ``report`` logs which.

    For a published file, the error says how to make a folder of it.
    """
    if path.is_file() and path.suffix != ".pt":
        raise CommandError(f"{path} is a file; a checkpoint here is a folder (dimr convert makes one)")
    if step is None and (path / CONFIG).is_file():
        saved = read_model_folder(path, weights)
    else:
        if not (path.is_file() or is_run(path)):
            read_config(path)  # whose error has a hint
        saved = read_weights(path, weights, step)
    if saved.config is None:
        raise CommandError(f"{path} is a file; a checkpoint here is a folder (dimr convert makes one)")
    if report:
        report_weights(saved)
    model = model_of(saved.tensors, saved.config, str(saved.file)).to(device).eval()
    if saved.file.parent == path:
        return Checkpoint(model, path, fingerprint(path))
    return Checkpoint(model, class_folder(saved), f"{saved.kind} {file_sha256(saved.file)}")


def class_folder(saved: SavedWeights) -> Path:
    """Return the folder with the class names: of a run's checkpoint that of its model."""
    folder = saved.file.parent
    return folder.with_name("model") if folder.name == "checkpoints" else folder


def report_weights(saved: SavedWeights) -> None:
    """Log which of a run's weights these are, and warn of an average that is still near its start."""
    if saved.step is not None:
        logger.info("reading %s", saved.describe())
    if (warning := saved.warning()) is not None:
        logger.warning("%s", warning)
