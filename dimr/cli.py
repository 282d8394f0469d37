"""The command line: ``dimr COMMAND ...``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

import dimr_kernels as dk

from .checkpoints import CheckpointError
from .commands import analyze, convert, demo, encode, evaluate, info, sample, train
from .commands.arguments import INTERRUPTED, CommandError
from .data.dataset import DataError
from .evaluation.metrics import EvaluationError
from .training.loop import DivergedError
from .utils import MissingPackageError, OutOfMemoryError, first_line, is_out_of_memory

COMMANDS = {
    "demo": demo, "train": train, "sample": sample, "encode": encode, "evaluate": evaluate, "analyze": analyze,
    "convert": convert, "info": info,
}  # fmt: skip
# What the user can put right: one line, no traceback. Anything else is a bug and shows itself whole.
USER_ERRORS = (
    CommandError, CheckpointError, DataError, EvaluationError, MissingPackageError, DivergedError, OutOfMemoryError,
    dk.BackendError, OSError,
)  # fmt: skip
USAGE_ERROR = 2


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dimr", description="Multi-resolution diffusion models")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        module.add_arguments(subparsers.add_parser(name, help=module.HELP, description=module.HELP))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0 for success, 1 for a bad result, 2 for bad input, 130 after Ctrl-C."""
    parsed = build_parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("dimr").setLevel(logging.INFO)
    try:
        return COMMANDS[parsed.command].run(parsed)
    except USER_ERRORS as error:
        return _refused(parsed.command, str(error))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _refused(parsed.command, f"out of memory: {first_line(error) or 'the host has no more'}")
    except KeyboardInterrupt:
        sys.stderr.write(f"dimr {parsed.command}: interrupted\n")
        return INTERRUPTED


def _refused(command: str, reason: str) -> int:
    """Names out of damaged files may hold line breaks and control sequences."""
    line = "".join(character if character.isprintable() else " " for character in reason)
    sys.stderr.write(f"dimr {command}: error: {line}\n")
    return USAGE_ERROR
