"""Exponential moving average of a model's parameters."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..distributed import local_tensor, reshard, shard_like


class ExponentialMovingAverage:
    """``average = d * average + (1 - d) * parameter`` after every step, for all parameters in one fused update.

    With ``ramp``, ``d`` rises to ``decay`` as ``(1 + n) / (10 + n)`` in the number of updates ``n``, so that the poor
    parameters of the first steps are soon forgotten. Buffers are not averaged: the models here have none that change.
    With a sharded model each process averages its own shards.

    Attributes:
        initial_share: share of the averages that is still the parameters they began with.

    Raises:
        ValueError: ``decay`` is out of range.
        TypeError: a parameter is narrower than float32, in which ``(1 - d) * parameter`` would be lost.
    """

    def __init__(self, model: nn.Module, decay: float, ramp: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.ramp = ramp
        self.updates = 0
        self.initial_share = 1.0
        self._model = model
        self._parameters = dict(model.named_parameters())
        for name, parameter in self._parameters.items():
            if parameter.dtype not in (torch.float32, torch.float64):
                raise TypeError(f"averages need float32 parameters (and autocast), {name} has {parameter.dtype}")
        self._averages = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._local_averages = [local_tensor(average) for average in self._averages.values()]

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the parameters."""
        decay = decay_at(self.updates, self.decay, self.ramp)
        parameters = [local_tensor(parameter.detach()) for parameter in self._parameters.values()]
        torch._foreach_lerp_(self._local_averages, parameters, 1 - decay)
        self.updates += 1
        self.initial_share *= decay

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Use the averages as the model's parameters inside the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(self._averages[name])
            self._averages[name].copy_(kept)
        reshard(self._model)

    def state_dict(self) -> dict[str, Tensor | int | float | dict[str, Tensor]]:
        """Return the averages, sharded if the model is, the number of updates and the share of the first parameters."""
        return {"updates": self.updates, "initial_share": self.initial_share, "averages": dict(self._averages)}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Load full averages into a model that may be sharded."""
        averages = state["averages"]
        if averages.keys() != self._averages.keys():
            odd = sorted(averages.keys() ^ self._averages.keys())
            raise ValueError(f"the averages do not fit the model: {', '.join(odd[:5])}")
        for name, average in self._averages.items():
            average.copy_(shard_like(averages[name], average))
        self.updates = int(state["updates"])
        self.initial_share = initial_share(state, self.decay, self.ramp)


def decay_at(updates: int, decay: float, ramp: bool) -> float:
    """Return the decay of the update after ``updates`` others."""
    return min(decay, (1 + updates) / (10 + updates)) if ramp else decay


def initial_share(state: dict, decay: float, ramp: bool) -> float:
    """Return the share of a state's averages that is the first parameters, from the decay where the state lacks it."""
    if "initial_share" in state:
        return float(state["initial_share"])
    return math.prod(decay_at(n, decay, ramp) for n in range(int(state["updates"])))
