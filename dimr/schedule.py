"""The noise schedule: ``x_n = sqrt(alpha_bar_n) x_0 + sqrt(1 - alpha_bar_n) noise`` for steps n = 1 .. 1000."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """Scaled-linear betas: linear in their square roots from ``beta_start`` to ``beta_end``.

    A timestep is a step number, in (0, num_steps]; between steps log(alpha) is interpolated linearly, below step 1 it
    stays what it is at step 1. ``alpha = sqrt(alpha_bar)``, ``sigma = sqrt(1 - alpha_bar)``,
    ``lambda = log(alpha / sigma)``.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    num_steps: int = 1000

    def __post_init__(self) -> None:
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ValueError(f"wanted 0 < beta_start <= beta_end < 1, got {self.beta_start} and {self.beta_end}")
        if self.num_steps < 2:
            raise ValueError(f"num_steps must be at least 2, got {self.num_steps}")
        betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_steps) ** 2
        log_alphas = 0.5 * np.cumsum(np.log1p(-betas))
        object.__setattr__(self, "_log_alphas", log_alphas)
        object.__setattr__(self, "_lambdas", _half_log_snr(log_alphas))
        object.__setattr__(self, "_steps", np.arange(1, self.num_steps + 1, dtype=np.float64))

    def log_alpha(self, timestep: float) -> float:
        return float(np.interp(timestep, self._steps, self._log_alphas))

    def alpha(self, timestep: float) -> float:
        return float(np.exp(self.log_alpha(timestep)))

    def sigma(self, timestep: float) -> float:
        return float(np.sqrt(-np.expm1(2 * self.log_alpha(timestep))))

    def lam(self, timestep: float) -> float:
        """Half the log signal-to-noise ratio, falling in the timestep."""
        return float(_half_log_snr(np.asarray(self.log_alpha(timestep))))

    def add_noise(self, x0: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """``x0, noise [B, ...]`` and whole steps ``[B]`` in 1 .. num_steps -> the noised ``[B, ...]``.

        Raises:
            ValueError: shapes that differ, or (on the CPU) a step out of range.
        """
        if noise.shape != x0.shape:
            raise ValueError(f"noise must have x0's shape {list(x0.shape)}, got {list(noise.shape)}")
        if step.dtype not in (torch.int64, torch.int32) or tuple(step.shape) != (x0.shape[0],):
            raise ValueError(f"step must be integers of shape [{x0.shape[0]}], got {step.dtype} {list(step.shape)}")
        if step.device.type == "cpu" and step.numel() and not 1 <= int(step.min()) <= int(step.max()) <= self.num_steps:
            raise ValueError(f"step must be in [1, {self.num_steps}], got {step.tolist()}")
        shape = (-1,) + (1,) * (x0.dim() - 1)
        log_alpha = torch.from_numpy(self._log_alphas).to(x0.device)[step.long() - 1]
        alpha = log_alpha.exp().to(x0.dtype).reshape(shape)
        sigma = (-torch.expm1(2 * log_alpha)).sqrt().to(x0.dtype).reshape(shape)
        return alpha * x0 + sigma * noise


def _half_log_snr(log_alpha: np.ndarray) -> np.ndarray:
    return log_alpha - 0.5 * np.log(-np.expm1(2 * log_alpha))
