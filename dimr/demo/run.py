"""The demo from end to end."""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import Any

import torch

from ..counting import count_macs, count_parameters
from ..files import write_json
from ..plots import save_loss_curves
from ..report import describe_environment, describe_kernels
from ..training.determinism import deterministic_algorithms
from ..training.loop import Trainer
from .folder import DemoFolder
from .measure import draw_samples, measure
from .pictures import save_sample_grid
from .settings import SamplingSettings, demo_config, demo_training
from .training import new_trainer, train, training_and_held_out

logger = logging.getLogger(__name__)


def begin(device: torch.device, size: int = 8, seed: int = 0, steps: int | None = None) -> Trainer:
    """A new run; ``size`` is a multiple of 8, ``steps`` None takes the usual number."""
    return new_trainer(demo_config(size), demo_training(seed, steps), device)


def run_demo(trainer: Trainer, folder: DemoFolder, sampling: SamplingSettings) -> dict[str, Any] | None:
    """Train, sample, measure; the files are those of :class:`DemoFolder`.

    Returns:
        The report, also written to the folder; None if Ctrl-C stopped the training, whose state is then saved.
    """
    clock = _Clock()
    first_step = trainer.step
    _announce(trainer)
    with deterministic_algorithms():
        if not train(trainer, folder):
            return None
        clock.lap("training")
        with trainer.ema.applied():
            samples = draw_samples(trainer.model.eval(), sampling, trainer.settings.seed)
        clock.lap("sampling")
    digits, held_out = training_and_held_out(trainer.model.config.input_size)
    quality = measure(samples, digits, held_out)
    save_sample_grid(folder, samples, held_out)
    save_loss_curves(folder.losses, trainer.losses, trainer.model.config.resolutions)
    clock.lap("measuring and drawing")
    report = {
        "quality": quality,
        "seconds": clock.laps,
        "steps": {"total": trainer.step, "resumed_from": first_step},
        "model": _describe_model(trainer),
        "training": trainer.settings.to_dict(),
        "sampling": dataclasses.asdict(sampling),
        "final_loss": trainer.recent_loss(),
        "kernels": describe_kernels(trainer.model),
        "environment": describe_environment(trainer.model.device),
    }
    write_json(folder.report, report)
    return report


class _Clock:
    """Seconds from lap to lap."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 2)
        self._last = now


def _describe_model(trainer: Trainer) -> dict[str, Any]:
    model = trainer.model
    return {
        "config": model.config.to_dict(),
        "resolutions": list(model.config.resolutions),
        "parameters": count_parameters(model),
        "multiply_adds": count_macs(model),
    }


def _announce(trainer: Trainer) -> None:
    model, settings = trainer.model, trainer.settings
    resolutions = ", ".join(f"{s}x{s}" for s in model.config.resolutions)
    logger.info(
        "DiMR with branches at %s, %.2f M parameters; %d steps of %d digits on %s, seed %d%s",
        resolutions, count_parameters(model) / 1e6, settings.steps, settings.batch_size, model.device, settings.seed,
        f", going on from step {trainer.step}" if trainer.step else "",
    )  # fmt: skip
    kernels = describe_kernels(model)
    logger.info(
        "kernels (backend %s): %s; attention: %s",
        kernels["backend"], ", ".join(kernels["fused"]) or "none fused, plain PyTorch",
        ", ".join(kernels["attention"]) or "plain PyTorch",
    )  # fmt: skip
