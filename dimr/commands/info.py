"""``dimr info``: what a model is made of."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..config import DiMRConfig
from ..counting import count_macs, count_parameters
from ..variants import list_models, model_config
from .common import CommandError, load_checkpoint, say

HELP = "parameters, multiply-adds and configuration of a named model or a checkpoint; without one, of all named models"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="a name from the list, or a checkpoint folder")


def run(arguments: argparse.Namespace) -> int:
    if arguments.model is None:
        for name in list_models():
            say(f"{name:14} {_counts(model_config(name))}")
        return 0
    config = _config(arguments.model)
    say(_counts(config))
    say(json.dumps(config.to_dict(), indent=2))
    return 0


def _config(model: str) -> DiMRConfig:
    if model in list_models():
        return model_config(model)
    if not Path(model).exists():
        raise CommandError(f"{model!r} is neither a checkpoint folder nor one of {', '.join(list_models())}")
    return load_checkpoint(Path(model)).config


def _counts(config: DiMRConfig) -> str:
    parameters, macs = count_parameters(config) / 1e6, count_macs(config) / 1e9
    return (
        f"{parameters:9.2f} M parameters, {macs:8.3f} G multiply-adds per image, "
        f"{config.in_channels}x{config.input_size}x{config.input_size}, branches at {list(config.resolutions)}"
    )
