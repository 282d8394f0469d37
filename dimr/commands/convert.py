"""``dimr convert``: convert between published checkpoint files, checkpoint folders, runs and diffusers pipelines."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from types import ModuleType

from ..checkpoints import convert_to_published, load_official_checkpoint, save_model
from ..checkpoints.official import SUFFIXES, publish
from ..checkpoints.weights import PUBLISHED, SavedWeights, model_of, read_state_dict, write_about
from ..model.network import DiMR
from ..model.variants import list_models
from ..sampling.class_names import FILE, TRAINED_FILE
from ..training.checkpoint import FORMAT
from ..training.saved import is_run, read_weights
from ..utils import first_line
from . import arguments as kinds
from .arguments import CommandError, class_folder, report_weights, say

PIPELINE_INDEX = "model_index.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        type=Path,
        metavar="IN",
        help="a published file (.pth or .safetensors) or folder STEP.ckpt, a checkpoint folder, a run's folder or one "
        "of its checkpoints, or a pipeline's folder",
    )
    parser.add_argument("target", type=Path, metavar="OUT", help="a folder, or a file ending in .pth or .safetensors")
    parser.add_argument(
        "--model", choices=list_models(), help="the model in a published file or STEP.ckpt; required for one"
    )
    parser.add_argument(
        "--key", metavar="NAME", help="the weights to take from a file that holds several, for example ema"
    )
    kinds.add_weights(parser)
    parser.add_argument(
        "--pipeline", action="store_true", help="make a folder for diffusers: DiMRPipeline.from_pretrained(OUT)"
    )
    parser.add_argument("--vae", type=Path, metavar="DIR", help="with --pipeline: autoencoder for a model of latents")


def run(arguments: argparse.Namespace) -> int:
    source = arguments.source
    if not source.exists():
        raise CommandError(f"there is nothing at {source}")
    if arguments.vae is not None and not arguments.pipeline:
        raise CommandError("--vae: it is a part of a pipeline; give --pipeline too")
    if arguments.pipeline and arguments.target.suffix in SUFFIXES:
        raise CommandError(f"--pipeline: a pipeline is a folder, {arguments.target} is the name of a file")
    say(f"wrote {_convert(arguments)}")
    return 0


def _convert(arguments: argparse.Namespace) -> Path:
    source, target, chosen = arguments.source, arguments.target, arguments.weights
    if (source / PIPELINE_INDEX).is_file():
        for option in ("pipeline", "weights", "step", "key", "model"):
            if getattr(arguments, option):
                raise CommandError(f"--{option}: {source} is a pipeline's folder already")
        return _pipelines().convert_from_pipeline(source, target)
    if (source / PUBLISHED["ema"]).is_file():
        source = source / PUBLISHED[chosen or "ema"]
        say(f"reading the {'averaged' if chosen != 'raw' else 'raw'} weights, {source}")
        chosen = None
    if source.is_dir() and arguments.model is not None:
        raise CommandError(f"--model: {source} is a folder, which says itself what it holds")
    of_run = is_run(source) or (source.suffix == ".pt" and read_state_dict(source).get("format") == FORMAT)
    if of_run or chosen is not None or arguments.step is not None:
        return _convert_run(arguments, source, chosen)
    if source.is_file() and arguments.model is None:
        raise CommandError(f"--model: say which model {source} holds: {', '.join(list_models())}")
    if source.is_dir() and arguments.key is not None:
        raise CommandError(f"--key: {source} is a folder, which holds one set of weights")
    if arguments.pipeline and arguments.key is None:
        return _to_pipeline(source, target, arguments.model, arguments.vae)
    if source.is_dir():
        return convert_to_published(source, target)
    return _write(load_official_checkpoint(source, arguments.model, arguments.key), arguments)


def _convert_run(arguments: argparse.Namespace, source: Path, chosen: str | None) -> Path:
    """Convert weights of a run, with the names of its classes."""
    saved = read_weights(source, chosen, arguments.step)
    for option in ("model", "key"):
        if getattr(arguments, option) is not None:
            raise CommandError(f"--{option}: {source} is of a run, which says itself what it holds")
    assert saved.config is not None  # as there is a choice
    report_weights(saved)
    return _write(model_of(saved.tensors, saved.config, str(saved.file)), arguments, saved)


def _write(model: DiMR, arguments: argparse.Namespace, saved: SavedWeights | None = None) -> Path:
    """Write the model as the arguments say: a published file, a folder or, by way of a folder, a pipeline."""
    target = arguments.target
    if target.suffix in SUFFIXES:
        return publish(model, target)
    if not arguments.pipeline:
        return _write_folder(model, target, saved)
    with tempfile.TemporaryDirectory() as folder:
        return _to_pipeline(_write_folder(model, Path(folder), saved), target, None, arguments.vae)


def _write_folder(model: DiMR, folder: Path, saved: SavedWeights | None) -> Path:
    save_model(model, folder)
    if saved is not None and saved.kind is not None and saved.step is not None:
        write_about(folder, saved.kind, saved.step, saved.initial_share)
        for name in (FILE, TRAINED_FILE):
            if (class_folder(saved) / name).is_file():
                shutil.copy(class_folder(saved) / name, folder / name)
    return folder


def _to_pipeline(source: Path, target: Path, model: str | None, vae: Path | None) -> Path:
    try:
        return _pipelines().convert_to_pipeline(source, target, model, vae)
    except ValueError as error:  # the parts do not fit each other
        raise CommandError(str(error)) from error


def _pipelines() -> ModuleType:
    try:
        from ..diffusers_pipeline import conversion
    except RuntimeError as error:  # from a package that diffusers imports, such as torchvision
        raise CommandError(f"diffusers cannot be imported: {first_line(error)}") from error
    return conversion
