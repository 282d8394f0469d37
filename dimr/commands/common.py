"""What the subcommands share."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from ..checkpoints import load_model
from ..network import DiMR
from ..training.processes import local_device

INTERRUPTED = 130  # exit code after Ctrl-C


class CommandError(Exception):
    """Something that the user can put right, said in one line."""


def say(text: str) -> None:
    """A result, to stdout."""
    sys.stdout.write(text + "\n")


def pick_device(name: str | None) -> torch.device:
    """The named device, or the best there is. A device that is not there is a :class:`CommandError`."""
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
    """:func:`pick_device`; where no GPU is named by its number, each process that torchrun started has its own."""
    device = pick_device(name)
    return local_device(device.type) if device.index is None else device


def load_checkpoint(folder: Path, device: torch.device | str = "cpu") -> DiMR:
    """The model in a checkpoint folder; a file in its place gets told how to become one."""
    if folder.is_file():
        raise CommandError(f"{folder} is a file; a checkpoint here is a folder (dimr convert makes one)")
    return load_model(folder, device)
