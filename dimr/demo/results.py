"""The demo from end to end: training, samples of all classes, measurements, pictures and a report."""

from __future__ import annotations

import dataclasses
import logging
import time
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import dimr_kernels as dk

from ..data.digits import NUM_CLASSES, LabelledImages
from ..diffusion.sample import Guidance
from ..evaluation.digits import DigitClassifier, nearest_distances, within_class_deviation
from ..images import save_image, save_loss_curves, side_by_side, tile
from ..model.counting import count_macs, count_parameters
from ..model.network import DiMR
from ..sampling.plan import sample_in_batches
from ..training.loop import Trainer, deterministic_algorithms
from ..utils import describe_environment, write_json
from .training import (
    WANTED_ACCURACY,
    DemoFolder,
    SamplingSettings,
    demo_config,
    demo_training,
    new_trainer,
    train,
    training_and_held_out,
)

BATCH_SIZE = 200  # activations of much larger batches do not fit into a CPU's caches
COLUMNS = 10
SHOWN_SIZE = 40  # pixels across one digit

logger = logging.getLogger(__name__)


def begin(device: torch.device, size: int = 8, seed: int = 0, steps: int | None = None) -> Trainer:
    """Start a run; ``size`` is a multiple of 8, and ``steps`` None is the default number."""
    return new_trainer(demo_config(size), demo_training(seed, steps), device)


def run_demo(trainer: Trainer, folder: DemoFolder, sampling: SamplingSettings) -> dict[str, Any] | None:
    """Train, sample and measure, and write the files of :class:`DemoFolder`.

    Returns:
        The report, which is also written to the folder; None if Ctrl-C stopped the training, whose state is saved.
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


def draw_samples(model: DiMR, settings: SamplingSettings, seed: int) -> LabelledImages:
    """Draw ``per_class`` samples of each class, class after class, clamped to [-1, 1], on the CPU."""
    labels = torch.arange(NUM_CLASSES).repeat_interleave(settings.per_class)
    guidance = Guidance("constant", settings.guidance)
    images = sample_in_batches(model, labels, seed, BATCH_SIZE, steps=settings.steps, guidance=guidance)
    return LabelledImages(images.clamp(-1, 1), labels)


def measure(samples: LabelledImages, trained_on: LabelledImages, held_out: LabelledImages) -> dict[str, Any]:
    """Compute the figures of the report.

    The classifier is fitted on ``held_out``, which the generator has not seen. Its own accuracy is measured on
    ``trained_on``, which the classifier has not seen.
    """
    classifier = DigitClassifier(held_out)
    recognised, real = classifier.recognition(samples), classifier.recognition(trained_on)
    return {
        "accuracy": recognised.accuracy,
        "wanted_accuracy": WANTED_ACCURACY,
        "passed": recognised.accuracy >= WANTED_ACCURACY,
        "accuracy_per_class": list(recognised.per_class),
        "classifier": {
            "kind": "support vector machine, Gaussian kernel, on pixels",
            "fitted_on_real_digits": len(held_out),
            "accuracy_on_unseen_real_digits": real.accuracy,
        },
        "diversity": {
            "nearest_training_image": {
                "samples": nearest_distances(samples.images, trained_on.images).mean().item(),
                "held_out_digits": nearest_distances(held_out.images, trained_on.images).mean().item(),
            },
            "pixel_deviation_within_class": {
                "samples": within_class_deviation(samples),
                "held_out_digits": within_class_deviation(held_out),
            },
        },
    }


def save_sample_grid(folder: DemoFolder, samples: LabelledImages, real: LabelledImages) -> None:
    """Draw samples beside real digits, one row per class."""
    columns = min(COLUMNS, len(samples) // NUM_CLASSES)
    zoom = max(1, SHOWN_SIZE // samples.images.shape[-1])
    panels = [
        (title, tile(torch.cat([data.images[data.labels == c][:columns] for c in range(NUM_CLASSES)]), columns, zoom))
        for title, data in (("Samples", samples), ("Real digits, held out", real))
    ]
    save_image(folder.samples, side_by_side(panels, [str(c) for c in range(NUM_CLASSES)]))


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


class _CalledOperators(TorchDispatchMode):
    """Dispatch mode that records the names of the operators that run inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        self.names.add(operator.name())
        return operator(*arguments, **(keywords or {}))


@torch.no_grad()
def describe_kernels(model: DiMR) -> dict[str, Any]:
    """List the operators that one forward calls: fused ones of ``dimr_kernels``, and the kind of attention."""
    config, device = model.config, model.device
    x = torch.zeros(2, config.in_channels, config.input_size, config.input_size, device=device, dtype=model.dtype)
    with _CalledOperators() as called:
        model(x, 500.0, torch.zeros(2, dtype=torch.int64, device=device))
    fused = sorted(name.partition("::")[2] for name in called.names if name.startswith("dimr_kernels::"))
    return {
        "backend": dk.current_backend(),
        "fused": fused,
        "attention": sorted(name for name in called.names if "scaled_dot_product" in name or "flash" in name),
    }


class _Clock:
    """Stopwatch with named laps, in seconds."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 2)
        self._last = now
