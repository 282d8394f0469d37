"""The training loop: noise prediction with exponential averaging, the same from the same seed, resumable exactly."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checkpoints.weights import CheckpointError, check_keys
from ..diffusion.loss import branch_losses, weighted_sum
from ..diffusion.schedule import NoiseSchedule
from ..distributed import (
    Processes,
    check_strategy,
    gathered,
    load_model_state,
    load_optimizer_state,
    local_gradients,
    replicate,
    shard,
    whole,
)
from ..model.network import DiMR
from ..utils import UserError, first_line, is_out_of_memory
from .ema import ExponentialMovingAverage
from .optimizer import build_optimizer, learning_rate_at, set_learning_rate
from .recipe import TrainingSettings

# The same numbers from the same seed, on a GPU too.


@contextlib.contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Inside the block torch takes deterministic algorithms where it has them, and warns where it has none.

    cuBLAS reads its variable when the process first uses it, so enter the block before that.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    was_on = torch.are_deterministic_algorithms_enabled()
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    debugging: Any = torch.utils.deterministic
    filled = debugging.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    debugging.fill_uninitialized_memory = False  # a debugging aid that costs a write of every tensor
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on, warn_only=warned_only)
        debugging.fill_uninitialized_memory = filled


# Draws a batch for one pass of this process, ``images [B, C, S, S]`` in [-1, 1] and ``labels [B]``, on the model's
# device. A source with a ``state_dict`` and ``load_state_dict`` has a position that is saved with the run.
BatchSource = Callable[[torch.Generator], tuple[Tensor, Tensor]]

# Looking at a result waits for a GPU, so divergence is not looked for at every step.
STEPS_PER_CHECK = 20


class DivergedError(UserError, RuntimeError):
    """The gradients are no longer finite numbers."""


class _Chance(NamedTuple):
    """What is random in a step beside the data, for the whole batch or a part of it."""

    dropped: Tensor  # bool [B], which images lose their class
    timestep: Tensor  # [B]
    noise: Tensor  # [B, C, S, S]

    def part(self, start: int, count: int) -> _Chance:
        return _Chance(*(values[start : start + count] for values in self))


class Trainer:
    """One run. All its randomness comes from one generator on the model's device, so the device need never be waited
    for, and the generator's state is all that a resumed run needs to go on as if it had not stopped.

    Several processes share a run: each has the same generator, draws the noise of the whole batch and takes its part,
    so their number changes nothing but the order of sums. All must call the same methods in the same order.

    Args:
        processes: those of the run; this one if None.
        strategy: "ddp" keeps the whole state in each process, "fsdp" a share of it.
        passes: forwards and backwards of each process to a step.

    Attributes:
        step: steps done.
        losses: ``[steps, branches]`` float32 on the model's device, the batch's mean per branch; NaN where not reached.
        gradient_norm: of the last step, before clipping; on the model's device.
    """

    def __init__(
        self,
        model: DiMR,
        batches: BatchSource,
        settings: TrainingSettings,
        schedule: NoiseSchedule | None = None,
        processes: Processes | None = None,
        strategy: str = "ddp",
        passes: int = 1,
    ) -> None:
        check_strategy(strategy)
        _check_fit(model, settings)
        self.model = model.set_checkpointing(settings.checkpointing)
        self.batches = batches
        self.settings = settings
        self.schedule = NoiseSchedule() if schedule is None else schedule
        self.processes = Processes() if processes is None else processes
        self.passes = passes
        self.step = 0
        branches, device = model.config.num_branches, model.device
        self.losses = torch.full((settings.steps, branches), math.nan, device=device)
        self.gradient_norm = torch.zeros((), device=device)
        self.generator = torch.Generator(device).manual_seed(settings.seed)
        self._finite = torch.ones((), dtype=torch.bool, device=device)
        self._predictor = self._prepared(strategy)
        self.ema = ExponentialMovingAverage(model, settings.ema_decay, settings.ema_ramp)
        self.optimizer = build_optimizer(
            model, settings.learning_rate, settings.weight_decay, settings.betas, settings.decaying
        )
        self._parameters = list(model.parameters())

    def _prepared(self, strategy: str) -> Any:
        """What to call for a prediction."""
        alone = self.processes.world_size == 1
        if strategy == "fsdp" and not alone:
            if self.settings.compile:
                for branch in self.model.branches:
                    for block in branch.blocks:  # type: ignore[union-attr]
                        block.compile(fullgraph=True)
            shard(self.model, self.processes)
            return self.model
        if self.settings.compile and alone:
            return torch.compile(self.model, fullgraph=True)
        if self.settings.compile:
            self.model.compile(fullgraph=True)
        return replicate(self.model, self.processes)

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
        set_learning_rate(self.optimizer, self.learning_rate)
        try:
            row = self.backward()
        except BaseException:  # above all out of memory: the next step must not add to half a gradient
            self.optimizer.zero_grad()
            raise
        self.gradient_norm = whole(self._clip())
        self._finite.logical_and_(self.gradient_norm.isfinite())
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()
        self.losses[self.step] = self.processes.average(row)
        self.step += 1

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        s = self.settings
        return learning_rate_at(self.step, s.steps, s.learning_rate, s.warmup_steps, s.learning_rate_schedule)

    def backward(self) -> Tensor:
        """Leaves the gradient of the whole batch's loss in the parameters.

        Returns:
            This process's mean loss per branch, ``[branches]``.
        """
        rows = []
        chance = None
        for i in range(self.passes):
            images, labels = self.batches(self.generator)
            B = len(labels)
            if chance is None:
                chance = self._chance(images, self.passes * self.processes.world_size * B)
            part = chance.part((i * self.processes.world_size + self.processes.rank) * B, B)
            last = i == self.passes - 1
            with contextlib.nullcontext() if last else local_gradients(self._predictor, self.model):
                losses = self._losses(images, labels, part)
                (weighted_sum(losses, self.settings.loss_weights).mean() / self.passes).backward()
            rows.append(torch.stack([loss.detach().mean() for loss in losses]))
        return torch.stack(rows).mean(dim=0)

    def _chance(self, images: Tensor, count: int) -> _Chance:
        """For ``count`` images like these."""
        device, generator = images.device, self.generator
        dropout = self.settings.class_dropout
        if dropout > 0:
            dropped = torch.rand(count, device=device, generator=generator) < dropout
        else:
            dropped = torch.zeros(count, dtype=torch.bool, device=device)
        timestep = torch.randint(1, self.schedule.num_steps + 1, (count,), device=device, generator=generator)
        return _Chance(dropped, timestep, torch.randn(count, *images.shape[1:], device=device, generator=generator))

    def _losses(self, images: Tensor, labels: Tensor, chance: _Chance) -> tuple[Tensor, ...]:
        """Each branch's losses ``[B]``."""
        labels = labels.masked_fill(chance.dropped, self.model.config.num_classes)
        noised = self.schedule.add_noise(images, chance.noise, chance.timestep)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            outputs = self._predictor(noised, chance.timestep, labels)
        return branch_losses(outputs, chance.noise)

    def _clip(self) -> Tensor:
        """Shorten the gradient if it is to be; its norm before."""
        most = self.settings.max_gradient_norm
        if most > 0:
            return torch.nn.utils.clip_grad_norm_(self._parameters, most)
        return torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])

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
        """Everything that :meth:`load_state_dict` needs to go on; tensors and plain values only.

        The state of a sharded model is whole in the first process's result only.
        """
        position = self.batches.state_dict() if hasattr(self.batches, "state_dict") else {}
        tensors = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        return {
            "step": self.step,
            "settings": self.settings.to_dict(),
            "config": self.model.config.to_dict(),
            "device": self.model.device.type,
            **gathered(tensors, keep=self.processes.first),
            "generator": self.generator.get_state(),
            "losses": self.losses[: self.step].clone(),
            "data": position,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`'s result. Processes, strategy and passes may be others than the saved run's.

        Raises:
            CheckpointError: its settings, configuration or kind of device are not this run's; or it is damaged, and
                this trainer then has parts of it and cannot be used.
        """
        try:
            self._load(state)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            if isinstance(error, CheckpointError) or is_out_of_memory(error):
                raise
            raise CheckpointError(f"the saved state is damaged: {type(error).__name__}: {first_line(error)}") from error

    def _load(self, state: dict[str, Any]) -> None:
        saved = TrainingSettings.from_dict(state["settings"]).deciding() | state["config"]
        for k, mine in sorted((self.settings.deciding() | self.model.config.to_dict()).items()):
            if saved.get(k) != mine:
                raise CheckpointError(f"the saved run has {k} = {saved.get(k)!r}, this one {mine!r}")
        if state["device"] != self.model.device.type:
            raise CheckpointError(
                f"the saved run was on {state['device']!r}, this one is on {self.model.device.type!r}"
            )
        shapes = {name: tuple(p.shape) for name, p in self.model.named_parameters()}
        for part, tensors in (("model", state["model"]), ("averages", state["ema"]["averages"])):
            check_keys({name: tuple(v.shape) for name, v in tensors.items()}, shapes, f"the saved state's {part}")
        load_model_state(self.model, state["model"])
        self.ema.load_state_dict(state["ema"])
        load_optimizer_state(self.optimizer, state["optimizer"])
        if hasattr(self.batches, "load_state_dict"):
            self.batches.load_state_dict(state["data"])
        self.generator.set_state(state["generator"].cpu())
        step, losses = state["step"], state["losses"]
        if not 0 <= step <= self.settings.steps or losses.shape != self.losses[:step].shape:
            raise ValueError(f"step {step} of {self.settings.steps} with losses {list(losses.shape)}")
        self.step = step
        self.losses[:step] = losses.to(self.losses.device)


def _check_fit(model: DiMR, settings: TrainingSettings) -> None:
    config = model.config
    if settings.class_dropout > 0 and not config.unconditional_class:
        raise ValueError("class_dropout must be 0 for a model without an unconditional class")
    weights, count = settings.loss_weights, config.num_branches
    if weights is not None and (len(weights) != count or not all(0 <= w < math.inf for w in weights)):
        raise ValueError(f"loss_weights must be {count} finite numbers of at least 0, got {list(weights)}")
