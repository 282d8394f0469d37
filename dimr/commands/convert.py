"""``dimr convert``: convert between published checkpoint files, checkpoint folders and diffusers pipelines."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..checkpoints import convert_to_folder, convert_to_published, load_official_checkpoint
from ..checkpoints.official import SUFFIXES, publish
from ..checkpoints.weights import PUBLISHED_AVERAGE
from ..model.variants import list_models
from ..utils import first_line
from .arguments import CommandError, say

PIPELINE_INDEX = "model_index.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        type=Path,
        metavar="IN",
        help="a published file (.pth or .safetensors) or folder STEP.ckpt, a checkpoint folder, or a pipeline's folder",
    )
    parser.add_argument("target", type=Path, metavar="OUT", help="a folder, or a file ending in .pth or .safetensors")
    parser.add_argument(
        "--model", choices=list_models(), help="the model in a published file or STEP.ckpt; required for one"
    )
    parser.add_argument(
        "--pipeline", action="store_true", help="make a folder for diffusers: DiMRPipeline.from_pretrained(OUT)"
    )
    parser.add_argument("--vae", type=Path, metavar="DIR", help="with --pipeline: autoencoder for a model of latents")


def run(arguments: argparse.Namespace) -> int:
    source = arguments.source
    if not source.exists():
        raise CommandError(f"there is nothing at {source}")
    if (source / PUBLISHED_AVERAGE).is_file():
        source = arguments.source = source / PUBLISHED_AVERAGE
        say(f"reading the averaged weights, {source}")
    if arguments.vae is not None and not arguments.pipeline:
        raise CommandError("--vae: it is a part of a pipeline; give --pipeline too")
    if source.is_file() and arguments.model is None:
        raise CommandError(f"--model: say which model {source} holds: {', '.join(list_models())}")
    if source.is_dir() and arguments.model is not None:
        raise CommandError(f"--model: {source} is a folder, which says itself what it holds")
    say(f"wrote {_convert(arguments)}")
    return 0


def _convert(arguments: argparse.Namespace) -> Path:
    source, target = arguments.source, arguments.target
    from_pipeline = (source / PIPELINE_INDEX).is_file()
    if from_pipeline or arguments.pipeline:
        try:
            from ..diffusers_pipeline import convert_from_pipeline, convert_to_pipeline
        except RuntimeError as error:  # from a package that diffusers imports, such as torchvision
            raise CommandError(f"diffusers cannot be imported: {first_line(error)}") from error
        if from_pipeline and arguments.pipeline:
            raise CommandError(f"--pipeline: {source} is a pipeline's folder already")
        if from_pipeline:
            return convert_from_pipeline(source, target)
        if target.suffix in SUFFIXES:
            raise CommandError(f"--pipeline: a pipeline is a folder, {target} is the name of a file")
        try:
            return convert_to_pipeline(source, target, arguments.model, arguments.vae)
        except ValueError as error:  # the parts do not fit each other
            raise CommandError(str(error)) from error
    if source.is_dir():
        return convert_to_published(source, target)
    if target.suffix in SUFFIXES:  # from one kind of published file to the other
        return publish(load_official_checkpoint(source, arguments.model), target)
    return convert_to_folder(source, target, arguments.model)
