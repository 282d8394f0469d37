"""``dimr info``: the size and configuration of a model."""

from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

from ..model.config import DiMRConfig
from ..model.counting import count_macs, count_parameters
from ..model.variants import ABLATIONS, VARIANTS, list_models, model_config
from .arguments import CommandError, load_checkpoint, say

NAMED = {**VARIANTS, **{name: row.config for name, row in ABLATIONS.items()}}

BASE_RECIPE = "dimr-m-3r"  # the ablations are trained as this model is


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="a name from the list, or a checkpoint folder")
    parser.add_argument("--ablations", action="store_true", help="list the paper's ablations in place of its models")


def run(arguments: argparse.Namespace) -> int:
    if arguments.model is None:
        names = list(ABLATIONS) if arguments.ablations else list_models()
        width = max(map(len, names))
        for name in names:
            say(f"{name:{width}} {_counts(model_config(name))}{_paper_values(name)}")
        return 0
    config = _config(arguments.model)
    say(_counts(config) + _paper_values(arguments.model))
    say(json.dumps(config.to_dict(), indent=2))
    if arguments.model in ABLATIONS:
        overrides = ABLATIONS[arguments.model].recipe_overrides(arguments.model)
        say(f"dimr train {BASE_RECIPE} {' '.join(f'--set {shlex.quote(o)}' for o in overrides)} --output DIR")
    return 0


def _config(model: str) -> DiMRConfig:
    if model in NAMED:
        return NAMED[model]
    if not Path(model).exists():
        raise CommandError(f"{model!r} is neither a checkpoint folder nor one of {', '.join(NAMED)}")
    return load_checkpoint(Path(model)).model.config


def _paper_values(name: str) -> str:
    """Cite an ablation's place in the paper and its parameters there."""
    if name not in ABLATIONS:
        return ""
    row = ABLATIONS[name]
    count = "" if row.paper_parameters is None else f": {row.paper_parameters} M"
    return f" (paper, {row.source}{count}; loss weights {list(row.loss_weights)})"


def _counts(config: DiMRConfig) -> str:
    parameters, macs = count_parameters(config) / 1e6, count_macs(config) / 1e9
    return (
        f"{parameters:9.2f} M parameters, {macs:8.3f} G multiply-adds per image, "
        f"{config.in_channels}x{config.input_size}x{config.input_size}, branches at {list(config.resolutions)}"
    )
