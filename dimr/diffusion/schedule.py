"""The noise schedule: ``x_n = sqrt(alpha_bar_n) x_0 + sqrt(1 - alpha_bar_n) noise`` for steps n = 1 .. 1000."""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """Scaled-linear betas: linear in their square roots from ``beta_start`` to ``beta_end``.

    A timestep is a number in [1, num_steps]; between whole steps, log(alpha) is interpolated linearly.
    ``alpha = sqrt(alpha_bar)`` and ``sigma = sqrt(1 - alpha_bar)`` are Python numbers in double precision.

    Example:
        >>> schedule = NoiseSchedule()
        >>> round(schedule.alpha(500.5) ** 2 + schedule.sigma(500.5) ** 2, 6)
        1.0
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    num_steps: ClassVar[int] = 1000

    def __post_init__(self) -> None:
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(f"wanted 0 < beta_start <= beta_end < 1, got {self.beta_start} and {self.beta_end}")

    def log_alpha(self, timestep: float) -> float:
        if not 1 <= timestep <= self.num_steps:
            raise ValueError(f"timestep must be in [1, {self.num_steps}], got {timestep}")
        table = _log_alphas(self)
        below = min(int(timestep), self.num_steps - 1)
        return table[below - 1] + (timestep - below) * (table[below] - table[below - 1])

    def alpha(self, timestep: float) -> float:
        return math.exp(self.log_alpha(timestep))

    def sigma(self, timestep: float) -> float:
        return math.sqrt(-math.expm1(2 * self.log_alpha(timestep)))

    def half_log_snr(self, timestep: float) -> float:
        """Return ``lambda = log(alpha / sigma)``, which falls as the timestep rises."""
        return math.log(self.alpha(timestep) / self.sigma(timestep))

    def add_noise(self, x0: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """Add noise: ``x0, noise [B, ...]`` and whole steps ``[B]`` in 1 .. num_steps -> ``[B, ...]``.

        Raises:
            ValueError: different shapes or devices, or a step out of range, which is checked on the CPU only.

        Example:
            >>> NoiseSchedule().add_noise(torch.ones(1), torch.zeros(1), torch.tensor([1000]))  # little is left of x0
            tensor([0.0683])
        """
        B = x0.shape[0] if x0.dim() else 0
        if noise.shape != x0.shape:
            raise ValueError(f"noise must have x0's shape {list(x0.shape)}, got {list(noise.shape)}")
        if step.dtype not in (torch.int64, torch.int32) or tuple(step.shape) != (B,):
            raise ValueError(f"step must be integers of shape [{B}], got {step.dtype} {list(step.shape)}")
        for name, tensor in (("noise", noise), ("step", step)):
            if tensor.device != x0.device:
                raise ValueError(f"{name} is on {tensor.device}, x0 is on {x0.device}")
        if step.device.type == "cpu" and B and not 1 <= int(step.min()) <= int(step.max()) <= self.num_steps:
            raise ValueError(f"step must be in [1, {self.num_steps}], got {step.tolist()}")
        alphas, sigmas = _coefficients(self, x0.device)
        alpha, sigma = (
            table[step.long() - 1].to(x0.dtype).reshape(B, *[1] * (x0.dim() - 1)) for table in (alphas, sigmas)
        )
        return alpha * x0 + sigma * noise


@lru_cache(maxsize=8)
def _log_alphas(schedule: NoiseSchedule) -> tuple[float, ...]:
    """Compute log(alpha) of steps 1 .. num_steps."""
    start, end, n = math.sqrt(schedule.beta_start), math.sqrt(schedule.beta_end), schedule.num_steps
    table, total = [], 0.0
    for i in range(n):
        beta = (start + (end - start) * i / (n - 1)) ** 2
        total += 0.5 * math.log1p(-beta)
        table.append(total)
    return tuple(table)


@lru_cache(maxsize=8)
def _coefficients(schedule: NoiseSchedule, device: torch.device) -> tuple[Tensor, Tensor]:
    """Compute float32 alpha and sigma of steps 1 .. num_steps; cached, so that training copies them only once."""
    with torch.inference_mode(False):
        log_alpha = torch.tensor(_log_alphas(schedule), dtype=torch.float64)
        alpha, sigma = log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()
        return alpha.float().to(device), sigma.float().to(device)
