"""Training batches from a data set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..data.loader import TrainingLoader
from ..data.reading import Batch
from .processes import Processes


class LoaderSource:
    """What a trainer draws its batches from, with their position. All processes must save and load it together."""

    def __init__(self, loader: TrainingLoader, device: torch.device, processes: Processes) -> None:
        self.loader = loader
        self.device = device
        self.processes = processes
        self._batches: Iterator[Batch] | None = None

    def __call__(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if self._batches is None:
            self._batches = iter(self.loader)
        return next(self._batches).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """The loader's, with the skips of all processes."""
        states = self.processes.all(self.loader.state_dict())
        skips = [state["skips"] for state in states]
        files = {name: reason for skip in skips for name, reason in skip["files"].items()}
        return {**states[0], "skips": {"files": files, "count": sum(skip["count"] for skip in skips)}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not self.processes.first:  # or their sum would count twice
            state = {**state, "skips": {**state["skips"], "count": 0}}
        self.loader.load_state_dict(state)
        self._batches = None
