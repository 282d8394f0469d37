"""The training loop: noise prediction with exponential averaging, the same from the same seed, resumable exactly."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.errors import CheckpointError
from ..loss import branch_losses, weighted_sum
from ..network import DiMR
from ..schedule import NoiseSchedule
from .ema import ExponentialMovingAverage
from .optimizer import build_optimizer, learning_rate_at, set_learning_rate

# Draws a batch, ``images [B, C, S, S]`` in [-1, 1] and ``labels [B]``, on the model's device.
BatchSource = Callable[[torch.Generator], tuple[Tensor, Tensor]]


class DivergedError(RuntimeError):
    """The loss is no longer a finite number."""


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """What decides a run beside the model's configuration and the data."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    ema_decay: float
    weight_decay: float = 0.03
    betas: tuple[float, float] = (0.9, 0.99)
    class_dropout: float = 0.1
    max_gradient_norm: float = 1.0
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "betas": list(self.betas)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingSettings:
        return cls(**{**values, "betas": tuple(values["betas"])})


class Trainer:
    """One run. All its randomness comes from one generator on the model's device, so the device need never be waited
    for, and the generator's state is all that a resumed run needs to go on as if it had not stopped.

    Attributes:
        step: steps done.
        losses: ``[steps, branches]`` float32 on the model's device, the batch's mean per branch; NaN where not reached.
    """

    def __init__(
        self, model: DiMR, batches: BatchSource, settings: TrainingSettings, schedule: NoiseSchedule | None = None
    ) -> None:
        self.model = model
        self.batches = batches
        self.settings = settings
        self.schedule = NoiseSchedule() if schedule is None else schedule
        self.ema = ExponentialMovingAverage(model, settings.ema_decay)
        self.optimizer = build_optimizer(model, settings.learning_rate, settings.weight_decay, settings.betas)
        self.generator = torch.Generator(model.device).manual_seed(settings.seed)
        self.step = 0
        branches = model.config.num_branches
        self.losses = torch.full((settings.steps, branches), math.nan, device=model.device)
        self._parameters = list(model.parameters())

    def run(self) -> Iterator[int]:
        """Train to the end; yields the number of steps done after each. Stop iterating to stop training."""
        while self.step < self.settings.steps:
            self._train_step()
            yield self.step

    def _train_step(self) -> None:
        settings = self.settings
        set_learning_rate(
            self.optimizer,
            learning_rate_at(self.step, settings.steps, settings.learning_rate, settings.warmup_steps),
        )
        losses = branch_losses(*self._predict())
        weighted_sum(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, settings.max_gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()
        with torch.no_grad():
            self.losses[self.step] = torch.stack([loss.mean() for loss in losses])
        self.step += 1

    def _predict(self) -> tuple[tuple[Tensor, ...], Tensor]:
        """Predictions for a fresh batch at random steps, and the noise that was added."""
        images, labels = self.batches(self.generator)
        B, device, generator = len(labels), images.device, self.generator
        if self.settings.class_dropout > 0:
            dropped = torch.rand(B, device=device, generator=generator) < self.settings.class_dropout
            labels = labels.masked_fill(dropped, self.model.config.num_classes)
        timestep = torch.randint(1, self.schedule.num_steps + 1, (B,), device=device, generator=generator)
        noise = torch.randn(images.shape, device=device, generator=generator)
        return self.model(self.schedule.add_noise(images, noise, timestep), timestep, labels), noise

    def recent_loss(self, window: int = 50) -> float:
        """The finest branch's mean loss over the last steps. Waits for the device.

        Raises:
            DivergedError: it is not finite.
        """
        value = self.losses[max(0, self.step - window) : self.step, -1].mean().item()
        if not math.isfinite(value):
            raise DivergedError(f"the loss is {value} at step {self.step}: lower the learning rate")
        return value

    def state_dict(self) -> dict[str, Any]:
        """Everything that :meth:`load_state_dict` needs to go on; tensors and plain values only."""
        return {
            "step": self.step,
            "settings": self.settings.to_dict(),
            "config": self.model.config.to_dict(),
            "device": self.model.device.type,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "losses": self.losses[: self.step].clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`'s result.

        Raises:
            CheckpointError: its settings, configuration or kind of device are not this run's.
        """
        for name, mine in (("settings", self.settings.to_dict()), ("config", self.model.config.to_dict())):
            different = sorted(k for k in mine if state[name].get(k) != mine[k])
            if different:
                k = different[0]
                raise CheckpointError(f"the saved run has {k} = {state[name].get(k)!r}, this one {mine[k]!r}")
        if state["device"] != self.model.device.type:
            raise CheckpointError(
                f"the saved run was on {state['device']!r}, this one is on {self.model.device.type!r}"
            )
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.step = int(state["step"])
        self.losses[: self.step] = state["losses"].to(self.losses.device)
