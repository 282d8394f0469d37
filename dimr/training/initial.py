"""The weights that a run starts from, where these are another model's: fine-tuning."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.official import from_any_state_dict
from ..checkpoints.weights import CheckpointError, SavedWeights
from ..model.config import DiMRConfig
from ..model.network import DiMR
from ..utils import file_sha256
from .saved import read_weights

CLASS_EMBEDDINGS = ("branches.0.class_embedding.weight", "stages.0.class_embeds.weight")  # own and published name
IMAGENET = 1000  # classes of the published models, some of which have an unconditional class besides


def load_initial_weights(
    model: DiMR, path: str | os.PathLike[str], key: str | None = None
) -> tuple[dict[str, Any], str]:
    """Load the weights at ``path`` into the model, which keeps its own class embedding for other classes.

    With another number of classes the embedding stays as the model was initialised, except for the unconditional
    class's row, which is taken over if both have one.

    Args:
        path: anything that :func:`~dimr.training.saved.read_weights` reads.

    Returns:
        What was loaded, for the run's record (path, SHA-256 of the file, the step of a run's checkpoint) and in words.

    Raises:
        FileNotFoundError, CheckpointError: there are no weights, or they do not fit; the message lists all of them.
    """
    saved = read_weights(path, key=key)
    own = model.config
    found = _embedding(saved.tensors)
    rows = own.num_embeddings if found is None else len(found)
    unconditional = _has_unconditional(rows, saved, own)
    config = dataclasses.replace(
        own, num_classes=max(1, rows - unconditional), unconditional_class=bool(unconditional and rows > 1)
    )
    weights = from_any_state_dict(saved.tensors, config, str(saved.file))
    odd = [name for name, value in weights.items() if not value.isfinite().all()]
    if odd:
        raise CheckpointError(f"{saved.file}: the values of {odd[0]} are not finite")
    name = CLASS_EMBEDDINGS[0]
    kept = _merge(model.get_parameter(name), weights[name], config, own)
    model.load_state_dict({**weights, name: model.get_parameter(name).detach()})
    sha256 = file_sha256(saved.file)
    record = {"path": os.fspath(path), "file": str(saved.file), "sha256": sha256, "step": saved.step}
    return record, f"starting from {saved.describe()} (sha256 {sha256[:12]}): {kept}"


def _embedding(tensors: Mapping[str, Tensor]) -> Tensor | None:
    """Find the class embedding ``[rows, D]``."""
    found = next((tensors[name] for name in CLASS_EMBEDDINGS if name in tensors), None)
    return found if isinstance(found, Tensor) and found.dim() == 2 and len(found) else None


def _has_unconditional(rows: int, saved: SavedWeights, own: DiMRConfig) -> bool:
    """Tell whether the last of the embedding's rows is the unconditional class's, which only a configuration says."""
    if saved.config is not None:
        return saved.config.unconditional_class
    if rows == own.num_embeddings:
        return own.unconditional_class
    return rows == IMAGENET + 1 or (own.unconditional_class and rows != IMAGENET)


@torch.no_grad()
def _merge(embedding: Tensor, found: Tensor, theirs: DiMRConfig, own: DiMRConfig) -> str:
    """Take over the rows of ``found`` that have a place in ``embedding``, in place, and describe them."""
    if theirs.num_classes == own.num_classes:
        embedding[: own.num_classes] = found[: own.num_classes]
        kept = f"the class embedding of {own.num_classes} classes is kept"
    else:
        kept = f"the class embedding is new for {own.num_classes} classes (it had {theirs.num_classes})"
    if not own.unconditional_class:
        return kept
    if not theirs.unconditional_class:
        return f"{kept}, the row of its unconditional class is new"
    embedding[-1] = found[-1]
    return f"{kept}, the row of its unconditional class is kept"
