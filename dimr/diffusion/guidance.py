"""Classifier-free guidance."""

from __future__ import annotations

import dataclasses
import math

from torch import Tensor

KINDS = ("constant", "power")


@dataclasses.dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: moves predictions away from the unconditional one.

    ``Guidance("constant", s)``: ``cond + s (cond - uncond)``.
    ``Guidance("power", s, p)``: ``uncond + k (cond - uncond)`` with ``k`` rising from 1 at t = 1 to ``s`` at t = 0,
    ``k = (s - 1) (1 - cos(pi (1 - t)^p)) / 2 + 1``.

    Example:
        >>> import torch
        >>> Guidance("constant", 0.5).combine(torch.tensor(2.0), torch.tensor(1.0), timestep=500)
        tensor(2.5000)
        >>> [round(Guidance("power", 4.0, 2.0).strength(timestep), 2) for timestep in (1000, 500, 1)]
        [1.0, 1.44, 4.0]
    """

    kind: str
    scale: float
    power: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}; got {self.kind!r}")
        for name in ("scale", "power"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, got {value!r}")
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise ValueError(f"scale must be a finite number of at least 0, got {self.scale}")
        if not (math.isfinite(self.power) and self.power > 0):
            raise ValueError(f"power must be a finite number above 0, got {self.power}")

    def strength(self, timestep: float) -> float:
        """``k`` of ``uncond + k (cond - uncond)`` at a timestep in (0, 1000]."""
        if self.kind == "constant":
            return 1 + self.scale
        ramp = (1 - math.cos(math.pi * (1 - timestep / 1000) ** self.power)) / 2
        return 1 + (self.scale - 1) * ramp

    def combine(self, conditional: Tensor, unconditional: Tensor, timestep: float) -> Tensor:
        """Return the guided prediction."""
        return unconditional.lerp(conditional, self.strength(timestep))
