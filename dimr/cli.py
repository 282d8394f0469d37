"""The command line: ``dimr COMMAND ...``."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from typing import Any

import dimr_kernels as dk

from .commands.arguments import INTERRUPTED
from .utils import UserError, first_line, is_out_of_memory, keep_freed_memory

# Each command is a module of dimr.commands with ``add_arguments(parser)`` and ``run(arguments)``, imported only when
# it is the one to run.
COMMANDS = {
    "demo": "train a small DiMR on handwritten digits in minutes, sample it and measure the samples",
    "train": "train a model as a recipe describes it, on one device or under torchrun on many",
    "sample": "draw images from a checkpoint folder, on one device or under torchrun on many",
    "encode": "write the latents of a data set's pictures, for training on latents; run again, it goes on where it "
    "stopped",
    "evaluate": "FID, sFID, Inception Score, precision and recall of samples; on other features, the same under other "
    "names",
    "analyze": "principal components of a model's norms over time; distorted samples as a classifier sees them",
    "convert": "turn a published checkpoint, a checkpoint folder and a folder of diffusers' into each other",
    "info": "parameters, multiply-adds and configuration of a named model or a checkpoint; without one, of all named "
    "models",
}
# Shown in one line without a traceback. Any other error is a bug and keeps its traceback.
USER_ERRORS = (UserError, dk.BackendError, OSError)
USAGE_ERROR = 2


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """Build the parser of all commands, with the arguments of the command ``only``, or of every command if None."""
    parser = argparse.ArgumentParser(prog="dimr", description="Multi-resolution diffusion models")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, description in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=description, description=description)
        if only is None or name == only:
            _command(name).add_arguments(subparser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0 for success, 1 for a bad result, 2 for bad input, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parsed = build_parser(only=arguments[0] if arguments else "").parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("dimr").setLevel(logging.INFO)
    keep_freed_memory()
    try:
        return _command(parsed.command).run(parsed)
    except USER_ERRORS as error:
        return _report_error(parsed.command, str(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _report_error(parsed.command, f"out of memory: {first_line(error) or 'the host has no more'}")
    except KeyboardInterrupt:
        sys.stderr.write(f"dimr {parsed.command}: interrupted\n")
        return INTERRUPTED


def _command(name: str) -> Any:
    return importlib.import_module(f".commands.{name}", __package__)


def _report_error(command: str, reason: str) -> int:
    # File names from damaged archives may hold line breaks and control sequences.
    line = "".join(character if character.isprintable() else " " for character in reason)
    sys.stderr.write(f"dimr {command}: error: {line}\n")
    return USAGE_ERROR
