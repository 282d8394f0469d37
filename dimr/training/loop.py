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
from ..recomputation import check_mode
from ..schedule import NoiseSchedule
from .ema import ExponentialMovingAverage
from .optimizer import build_optimizer, learning_rate_at, set_learning_rate

# Draws a batch, ``images [B, C, S, S]`` in [-1, 1] and ``labels [B]``, on the model's device.
BatchSource = Callable[[torch.Generator], tuple[Tensor, Tensor]]


PRECISIONS = ("float32", "bfloat16")
# Looking at a result waits for a GPU, so divergence is not looked for at every step.
STEPS_PER_CHECK = 20


class DivergedError(RuntimeError):
    """The gradients are no longer finite numbers."""


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """What decides a run beside the model's configuration and the data.

    Attributes:
        precision: "bfloat16" runs the model under autocast; weights, statistics, loss and optimizer stay float32.
        checkpointing: "none", "blocks" or "selective", see :meth:`dimr.DiMR.set_checkpointing`.
        compile: run the model through torch.compile. This and ``checkpointing`` may differ in a resumed run.
    """

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
    precision: str = "float32"
    checkpointing: str = "none"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(map(repr, PRECISIONS))}; got {self.precision!r}")
        check_mode(self.checkpointing)

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "betas": list(self.betas)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingSettings:
        return cls(**{**values, "betas": tuple(values["betas"])})

    def deciding(self) -> dict[str, Any]:
        """Those that a resumed run must share."""
        return {k: v for k, v in self.to_dict().items() if k not in ("checkpointing", "compile")}


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
        self.model = model.set_checkpointing(settings.checkpointing)
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
        self._predictor: Any = torch.compile(model, fullgraph=True) if settings.compile else model
        self._finite = torch.ones((), dtype=torch.bool, device=model.device)

    def run(self) -> Iterator[int]:
        """Train to the end; yields the number of steps done after each. Stop iterating to stop training.

        Raises:
            DivergedError: see :meth:`check_finite`, which is called every :data:`STEPS_PER_CHECK` steps.
        """
        while self.step < self.settings.steps:
            self.train_step()
            if self.step % STEPS_PER_CHECK == 0 or self.step == self.settings.steps:
                self.check_finite()
            yield self.step

    def train_step(self) -> None:
        """One step. The host gives orders only: it never waits for a GPU."""
        settings = self.settings
        set_learning_rate(
            self.optimizer,
            learning_rate_at(self.step, settings.steps, settings.learning_rate, settings.warmup_steps),
        )
        losses = self._losses()
        weighted_sum(losses).mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, settings.max_gradient_norm)
        self._finite.logical_and_(norm.isfinite())
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()
        with torch.no_grad():
            self.losses[self.step] = torch.stack([loss.mean() for loss in losses])
        self.step += 1

    def _losses(self) -> tuple[Tensor, ...]:
        """Each branch's losses ``[B]`` for a fresh batch at random steps."""
        images, labels = self.batches(self.generator)
        B, device, generator = len(labels), images.device, self.generator
        if self.settings.class_dropout > 0:
            dropped = torch.rand(B, device=device, generator=generator) < self.settings.class_dropout
            labels = labels.masked_fill(dropped, self.model.config.num_classes)
        timestep = torch.randint(1, self.schedule.num_steps + 1, (B,), device=device, generator=generator)
        noise = torch.randn(images.shape, device=device, generator=generator)
        noised = self.schedule.add_noise(images, noise, timestep)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            outputs = self._predictor(noised, timestep, labels)
        return branch_losses(outputs, noise)

    def check_finite(self) -> None:
        """Waits for the device.

        Raises:
            DivergedError: the gradient of some step was not finite, so the weights are lost.
        """
        if not self._finite.item():
            raise DivergedError(f"the gradients are no longer finite at step {self.step}: lower the learning rate")

    def recent_loss(self, window: int = 50) -> float:
        """The finest branch's mean loss over the last steps. Waits for the device."""
        return self.losses[max(0, self.step - window) : self.step, -1].mean().item()

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
        saved = TrainingSettings.from_dict(state["settings"]).deciding() | state["config"]
        for k, mine in sorted((self.settings.deciding() | self.model.config.to_dict()).items()):
            if saved.get(k) != mine:
                raise CheckpointError(f"the saved run has {k} = {saved.get(k)!r}, this one {mine!r}")
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
