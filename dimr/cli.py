"""The command line: ``dimr COMMAND ...``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

import dimr_kernels as dk

from .checkpoints import CheckpointError
from .commands import analyze, convert, demo, encode, evaluate, info, sample, train
from .commands.common import INTERRUPTED, CommandError
from .data.errors import DataError
from .evaluation.errors import EvaluationError
from .optional import MissingPackageError
from .training.loop import DivergedError

COMMANDS = {
    "demo": demo, "train": train, "sample": sample, "encode": encode, "evaluate": evaluate, "analyze": analyze,
    "convert": convert, "info": info,
}  # fmt: skip
# What the user can put right: one line, no traceback. Anything else is a bug and shows itself whole.
USER_ERRORS = (
    CommandError, CheckpointError, DataError, EvaluationError, MissingPackageError, DivergedError, dk.BackendError,
    OSError,
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
        sys.stderr.write(f"dimr {parsed.command}: error: {error}\n")
        return USAGE_ERROR
    except KeyboardInterrupt:
        sys.stderr.write(f"dimr {parsed.command}: interrupted\n")
        return INTERRUPTED
