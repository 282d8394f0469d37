"""``dimr convert``: a published checkpoint file to a folder, or back."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..checkpoints import convert_to_folder, convert_to_published
from ..variants import list_models
from .common import CommandError, say

HELP = "turn a published checkpoint (.pth or .safetensors) into a folder, or a folder into such a file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="IN", help="a published file, or a checkpoint folder")
    parser.add_argument("target", type=Path, metavar="OUT", help="a folder, or a file ending in .pth or .safetensors")
    parser.add_argument("--model", choices=list_models(), help="what a published file holds; needed for one")


def run(arguments: argparse.Namespace) -> int:
    source, target = arguments.source, arguments.target
    if not source.exists():
        raise CommandError(f"there is nothing at {source}")
    if source.is_dir():
        written = convert_to_published(source, target)
    else:
        if arguments.model is None:
            raise CommandError(f"--model: say which model {source} holds: {', '.join(list_models())}")
        written = convert_to_folder(source, target, arguments.model)
    say(f"wrote {written}")
    return 0
