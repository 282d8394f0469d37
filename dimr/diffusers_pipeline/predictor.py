"""A pipeline's transformer as :func:`dimr.sampling.guided` calls one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..config import DiMRConfig
from ..inference import InferenceEngine


def architecture_of(transformer: Any) -> DiMRConfig:
    """Of a model, compiled or not, or of an engine."""
    return transformer.config if isinstance(transformer, InferenceEngine) else transformer.architecture


class Predictor:
    """See :class:`dimr.sampling.NoisePredictor`.

    Args:
        device: where the inputs are; a model that is offloaded comes there only when it is called.
    """

    def __init__(self, transformer: Any, device: torch.device) -> None:
        self._transformer = transformer
        self.config = architecture_of(transformer)
        self.device = device
        self.dtype: torch.dtype = transformer.dtype

    def __call__(self, x: Tensor, timestep: Tensor, class_labels: Tensor) -> tuple[Tensor, ...]:
        if isinstance(self._transformer, InferenceEngine):
            return self._transformer(x, timestep, class_labels)
        return self._transformer(x, timestep - 1, class_labels, return_dict=False)[1]
