"""Conversion between this package's checkpoints and pipeline folders of diffusers."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..checkpoints import CheckpointError, save_model
from ..checkpoints.official import SUFFIXES, publish
from ..sampling.class_names import save_class_names
from ..utils import first_line
from .pipeline import DiMRPipeline

INDEX = DiMRPipeline.config_name
# One file, a shard, or the index of shards, each perhaps of a variant.
WEIGHTS = re.compile(
    r"diffusion_pytorch_model(?:-\d+-of-\d+|\.(?:safetensors|bin)\.index)?(?:\.(\w+?)(?:-\d+-of-\d+)?)?"
    r"(?:-\d+-of-\d+)?\.(?:safetensors|bin|json)"
)


def convert_to_pipeline(
    source: str | os.PathLike[str], folder: str | os.PathLike[str], model: str | None = None, vae: Any = None
) -> Path:
    """Convert a checkpoint folder or a published file to a folder for ``DiMRPipeline.from_pretrained``.

    Args:
        folder: must not exist; it is written atomically.
        model, vae: as for :meth:`DiMRPipeline.from_checkpoint`.
    """
    folder = Path(folder)
    with _new_folder(folder) as temporary:
        DiMRPipeline.from_checkpoint(source, model, vae).save_pretrained(temporary)
    return folder


def convert_from_pipeline(folder: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
    """Convert a pipeline's folder, without its vae, to a checkpoint folder, or to a published file by the suffix."""
    if not (Path(folder) / INDEX).is_file():
        raise FileNotFoundError(f"no pipeline at {folder}: there is no {INDEX}")
    target = Path(target)
    try:
        variant = _variant(Path(folder) / "transformer")
        pipeline = DiMRPipeline.from_pretrained(os.fspath(folder), vae=None, variant=variant, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the pipeline in {folder} cannot be read: {first_line(error)}") from error
    model = pipeline.transformer.to_dimr()
    if target.suffix in SUFFIXES:
        return publish(model, target)
    save_model(model, target)
    if pipeline.class_names is not None:
        save_class_names(pipeline.class_names, target)
    return target


def _variant(folder: Path) -> str | None:
    """Return the variant that the weights were saved as, such as "fp16"; None if they are there without one.

    Raises:
        CheckpointError: there are several.
    """
    found = {match[1] for path in folder.glob("*") if (match := WEIGHTS.fullmatch(path.name))}
    if None in found or not found:
        return None
    if len(found) > 1:
        raise CheckpointError(f"{folder} holds several variants, {', '.join(sorted(found))}: keep one of them")
    return found.pop()


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Write a folder atomically: the block fills the yielded temporary folder, which is then renamed."""
    if folder.exists():
        raise FileExistsError(f"{folder} is there already; a pipeline needs a new folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        yield temporary
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
