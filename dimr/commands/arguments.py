"""Shared parts of the subcommands: types of arguments, which say what was wanted; devices; checkpoints."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..checkpoints import load_model
from ..distributed import local_device
from ..model.network import DiMR
from ..utils import UserError

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


def load_checkpoint(folder: Path, device: torch.device | str = "cpu") -> DiMR:
    """Load the model in a checkpoint folder. For a file, the error says how to make a folder of it."""
    if folder.is_file():
        raise CommandError(f"{folder} is a file; a checkpoint here is a folder (dimr convert makes one)")
    return load_model(folder, device)
