"""Small models of the published implementation with random weights, and what they computed (float32, CPU).

``tests/data/official_dimr``: ``NAME.state_dict.safetensors`` under the published names, ``NAME.tensors.safetensors``
with inputs, outputs, gradients, losses and samples; ``released_shapes.json``: every parameter of the two released
checkpoints.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from dimr import DiMR, DiMRConfig, load_official_checkpoint
from dimr.checkpoints.official import entries

FOLDER = Path(__file__).parents[1] / "data" / "official_dimr"
CONFIGS = {
    "tdrms_2r": DiMRConfig(
        in_channels=4, input_size=16, dims=(64, 32), layers=(5, 4), num_heads=4, num_classes=10, norm="td_rms"
    ),
    "tdln_3r": DiMRConfig(
        in_channels=3,
        input_size=16,
        dims=(48, 24, 12),
        layers=(3, 2, 2),
        num_heads=3,
        num_classes=10,
        unconditional_class=False,
        norm="td_layer",
    ),
}


def state_dict_path(case: str) -> Path:
    return FOLDER / f"{case}.state_dict.safetensors"


def official_model(case: str) -> DiMR:
    return load_official_checkpoint(state_dict_path(case), CONFIGS[case])


@cache
def official_tensors(case: str) -> dict[str, Tensor]:
    """Load inputs and results, which are shared and must not be written to."""
    return load_file(FOLDER / f"{case}.tensors.safetensors")


def released_shapes() -> dict[str, dict[str, list[int]]]:
    return json.loads((FOLDER / "released_shapes.json").read_text())


def published_gradients(model: DiMR) -> dict[str, Tensor]:
    """Return each parameter's gradient under the published names."""
    parameters = dict(model.named_parameters())
    found: dict[str, Tensor] = {}
    for entry in entries(model.config):
        parts = parameters[entry.ours].grad.chunk(len(entry.published))
        found |= {n: part.reshape(entry.published_shape) for n, part in zip(entry.published, parts, strict=True)}
    return found


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Relative error of the whole tensor in the Euclidean norm."""
    found = found.to(wanted.device)
    return (torch.linalg.vector_norm(found - wanted) / torch.linalg.vector_norm(wanted)).item()
