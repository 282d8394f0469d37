"""The training loop: noise prediction with an averaged model, reproducible from its seed and exactly resumable."""

from __future__ import annotations

import contextlib
import dataclasses
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
    full_state,
    full_tensor,
    load_model_state,
    load_optimizer_state,
    no_gradient_sync,
    replicate,
    shard,
)
from ..model.config import DiMRConfig
from ..model.network import DiMR
from ..utils import UserError, first_line, is_out_of_memory
from .ema import ExponentialMovingAverage
from .optimizer import (
    build_optimizer,
    learning_rate_at,
    parameter_groups,
    set_learning_rate,
    without_foreign_moments,
)
from .recipe import TrainingSettings

# Returns the next batch of this process for one pass, on the model's device: images [B, C, S, S] in [-1, 1] and labels
# [B]. A source with state_dict and load_state_dict has a position, which is saved with the run.
BatchSource = Callable[[torch.Generator], tuple[Tensor, Tensor]]

STEPS_PER_CHECK = 20  # checking for divergence waits for the GPU


class DivergedError(UserError, RuntimeError):
    """The gradients are no longer finite.

    Attributes:
        step: the first step whose gradients were not.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class _StepNoise(NamedTuple):
    """The random draws of one step, for the whole batch or a part of it."""

    dropped: Tensor  # bool [B], the images that train the unconditional class
    timestep: Tensor  # [B]
    noise: Tensor  # [B, C, S, S]

    def part(self, start: int, count: int) -> _StepNoise:
        return _StepNoise(*(values[start : start + count] for values in self))


class Trainer:
    """One training run.

    All randomness comes from one generator on the model's device. The host therefore never waits for the device, and
    the generator's state is enough for a resumed run to continue exactly.

    Several processes share a run: each has the same generator, draws the noise of the whole batch and takes its part,
    so the number of processes changes only the order of sums. All of them must call the same methods in order.

    Args:
        processes: the processes of the run; None is this one alone.
        strategy: "ddp" keeps the whole state on each process, "fsdp" shards it.
        passes: forward and backward passes of each process per step, whose gradients are accumulated.

    Attributes:
        step: number of steps done.
        losses: ``[steps, branches]`` float32 on the model's device, the batch mean per branch; NaN for steps to come.
        gradient_norm: norm of the last step's gradient before clipping, on the model's device.
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
        self._diverged_at = torch.zeros((), dtype=torch.int64, device=device)  # a step; 0 is none
        self._predictor = self._build_predictor(strategy)
        self.ema = ExponentialMovingAverage(model, settings.ema_decay, settings.ema_ramp)
        self.optimizer = build_optimizer(
            model,
            settings.learning_rate,
            settings.weight_decay,
            settings.betas,
            settings.decaying,
            settings.optimizer,
        )
        self._parameters = list(model.parameters())

    def _build_predictor(self, strategy: str) -> Any:
        """Return what the step calls in place of the model: compiled, replicated or sharded."""
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
        """Train to the end, and yield the number of steps done after each step. Stop iterating to stop training.

        Raises:
            DivergedError: see :meth:`check_finite`, which is called every :data:`STEPS_PER_CHECK` steps.
        """
        while self.step < self.settings.steps:
            self.train_step()
            if self.step % STEPS_PER_CHECK == 0 or self.step == self.settings.steps:
                self.check_finite()
            yield self.step

    def train_step(self) -> None:
        """Do one step, without waiting for the device."""
        set_learning_rate(self.optimizer, self.learning_rate)
        try:
            losses = self.backward()
        except BaseException:  # most often out of memory; the next step must not add to half a gradient
            self.optimizer.zero_grad()
            raise
        self.gradient_norm = full_tensor(self._clip())
        first_diverged = self.gradient_norm.isfinite().logical_not_().logical_and_(self._diverged_at == 0)
        self._diverged_at.masked_fill_(first_diverged, self.step + 1)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()
        self.losses[self.step] = self.processes.average(losses)
        self.step += 1

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return scheduled_rate(self.settings, self.step)

    def backward(self) -> Tensor:
        """Compute the gradient of the whole batch's loss, in the parameters' ``grad``.

        Returns:
            This process's mean loss per branch, ``[branches]``.
        """
        rows = []
        step_noise = None
        for i in range(self.passes):
            images, labels = self.batches(self.generator)
            B = len(labels)
            if step_noise is None:
                step_noise = self._draw_noise(images, self.passes * self.processes.world_size * B)
            part = step_noise.part((i * self.processes.world_size + self.processes.rank) * B, B)
            last = i == self.passes - 1
            with contextlib.nullcontext() if last else no_gradient_sync(self._predictor, self.model):
                losses = self._losses(images, labels, part)
                (weighted_sum(losses, self.settings.loss_weights).mean() / self.passes).backward()
            rows.append(torch.stack([loss.detach().mean() for loss in losses]))
        return torch.stack(rows).mean(dim=0)

    def _draw_noise(self, images: Tensor, count: int) -> _StepNoise:
        """Draw for ``count`` images of the shape of ``images``."""
        device, generator = images.device, self.generator
        dropout = self.settings.class_dropout
        if dropout > 0:
            dropped = torch.rand(count, device=device, generator=generator) < dropout
        else:
            dropped = torch.zeros(count, dtype=torch.bool, device=device)
        timestep = torch.randint(1, self.schedule.num_steps + 1, (count,), device=device, generator=generator)
        noise = torch.randn(count, *images.shape[1:], device=device, generator=generator)
        return _StepNoise(dropped, timestep, noise)

    def _losses(self, images: Tensor, labels: Tensor, step_noise: _StepNoise) -> tuple[Tensor, ...]:
        """Compute each branch's losses ``[B]``."""
        labels = labels.masked_fill(step_noise.dropped, self.model.config.num_classes)
        noised = self.schedule.add_noise(images, step_noise.noise, step_noise.timestep)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            outputs = self._predictor(noised, step_noise.timestep, labels)
        return branch_losses(outputs, step_noise.noise)

    def _clip(self) -> Tensor:
        """Clip the gradient if the settings say so, and return its norm before clipping."""
        largest = self.settings.max_gradient_norm
        if largest > 0:
            return torch.nn.utils.clip_grad_norm_(self._parameters, largest)
        return torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None])

    def check_finite(self) -> None:
        """Check that every gradient so far was finite. Waits for the device.

        Raises:
            DivergedError: one was not, so the weights are lost.
        """
        step = int(self._diverged_at.item())
        if step:
            raise DivergedError(f"the gradients are no longer finite at step {step}: lower the learning rate", step)

    def recent_loss(self, window: int = 50) -> float:
        """Return the finest branch's mean loss over the last steps. Waits for the device."""
        return self.losses[max(0, self.step - window) : self.step, -1].mean().item()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that :meth:`load_state_dict` needs to continue, as tensors and plain values.

        The state of a sharded model is complete on rank 0 only.
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
            **full_state(tensors, keep=self.processes.is_main),
            "generator": self.generator.get_state(),
            "losses": self.losses[: self.step].clone(),
            "data": position,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`'s result, with this trainer's settings, processes, strategy and passes.

        With another seed, or on another kind of device, whose generators differ, the noise is another from here on.

        Raises:
            CheckpointError: its configuration is not this run's, or it has done more steps than the settings have; or
                it is damaged, which can leave this trainer with a part of it, not to be used.
            DataError: its data is not this run's.
        """
        try:
            self._load(state)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            if isinstance(error, CheckpointError) or is_out_of_memory(error):
                raise
            raise CheckpointError(f"the saved state is damaged: {type(error).__name__}: {first_line(error)}") from error

    def _load(self, state: dict[str, Any]) -> None:
        self._check_resumable(state)
        saved = TrainingSettings.from_dict(state["settings"])
        shapes = {name: tuple(p.shape) for name, p in self.model.named_parameters()}
        for part, tensors in (("model", state["model"]), ("averages", state["ema"]["averages"])):
            check_keys({name: tuple(v.shape) for name, v in tensors.items()}, shapes, f"the saved state's {part}")
        load_model_state(self.model, state["model"])
        self.ema.load_state_dict(state["ema"])
        groups = parameter_groups(self.model, 0, saved.decaying, saved.optimizer)
        order = [p for group in groups for p in group["params"]]
        moments = without_foreign_moments(self.optimizer, state["optimizer"], order)
        load_optimizer_state(self.optimizer, moments, order)
        if hasattr(self.batches, "load_state_dict"):
            self.batches.load_state_dict(state["data"])
        step, losses = state["step"], state["losses"]
        if saved.seed == self.settings.seed and state["device"] == self.model.device.type:
            self.generator.set_state(state["generator"].cpu())
        else:
            self.generator.manual_seed((self.settings.seed + step) % 2**63)
        if step < 0 or losses.shape != self.losses[:step].shape:
            raise ValueError(f"step {step} with losses {list(losses.shape)}")
        self.step = step
        self.losses[:step] = losses.to(self.losses.device)

    def _check_resumable(self, state: dict[str, Any]) -> None:
        """Raise a CheckpointError, with every difference, for a state that is of no use to this run."""
        saved, config = (dataclasses.asdict(one) for one in (DiMRConfig.from_dict(state["config"]), self.model.config))
        differing = [
            f"model.{key} = {saved[key]!r}, this one {mine!r}" for key, mine in config.items() if saved[key] != mine
        ]
        if state["step"] > self.settings.steps:
            differing.append(f"done {state['step']} steps, this one ends at training.steps = {self.settings.steps}")
        if differing:
            raise CheckpointError(f"the saved run has {'; '.join(differing)}")


def scheduled_rate(settings: TrainingSettings, step: int) -> float:
    """Compute the learning rate of step ``step``, counted from 0."""
    s = settings
    return learning_rate_at(step, s.steps, s.learning_rate, s.warmup_steps, s.learning_rate_schedule)


def _check_fit(model: DiMR, settings: TrainingSettings) -> None:
    config = model.config
    if settings.class_dropout > 0 and not config.unconditional_class:
        raise ValueError("class_dropout must be 0 for a model without an unconditional class")
    weights, count = settings.loss_weights, config.num_branches
    if weights is not None and (len(weights) != count or not all(0 <= w < math.inf for w in weights)):
        raise ValueError(f"loss_weights must be {count} finite numbers of at least 0, got {list(weights)}")


@contextlib.contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Use torch's deterministic algorithms inside the block, and warn where there is none.

    cuBLAS reads its environment variable when the process first uses it, so enter the block before that.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    was_on = torch.are_deterministic_algorithms_enabled()
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    debugging: Any = torch.utils.deterministic
    filled = debugging.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    debugging.fill_uninitialized_memory = False  # a debugging aid that writes every new tensor once more
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_on, warn_only=warned_only)
        debugging.fill_uninitialized_memory = filled
