"""A pipeline's parts from this package's checkpoints."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..autoencoder import load_autoencoder
from ..checkpoints import load_model, load_official_checkpoint
from ..class_names import find_class_names
from ..network import DiMR
from ..schedule import NoiseSchedule
from ..variants import list_models
from .scheduler import make_scheduler
from .transformer import DiMRTransformer2DModel


def components(
    path: str | os.PathLike[str],
    model: str | None,
    vae: Any,
    schedule: NoiseSchedule | None,
    class_names: Sequence[str] | None,
) -> dict[str, Any]:
    """Arguments of :class:`~dimr.diffusers_pipeline.DiMRPipeline`; see its ``from_checkpoint``."""
    path, schedule = Path(path), schedule or NoiseSchedule()
    network = _network(path, model)
    names = find_class_names(network.config.num_classes, path) if class_names is None else class_names
    return {
        "transformer": DiMRTransformer2DModel.from_dimr(network),
        "scheduler": make_scheduler(schedule),
        "vae": load_autoencoder(vae) if isinstance(vae, (str, os.PathLike)) else vae,
        "id2label": None if names is None else {str(i): name for i, name in enumerate(names)},
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
    }


def _network(path: Path, model: str | None) -> DiMR:
    if path.is_dir():
        if model is not None:
            raise ValueError(f"model must be None for a folder, whose config.json says what it holds; got {model!r}")
        return load_model(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if model is None:
        raise ValueError(f"model must say what the file {path} holds: one of {', '.join(list_models())}")
    return load_official_checkpoint(path, model)
