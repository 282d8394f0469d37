"""What the demo does where its user does not say otherwise."""

from __future__ import annotations

import dataclasses

from ..config import DiMRConfig
from ..data.digits import NUM_CLASSES
from ..training.settings import TrainingSettings

# At least this share of the samples must be recognised as what was asked for.
WANTED_ACCURACY = 0.85


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
    """How the samples are drawn that the demo shows and measures."""

    per_class: int = 100
    steps: int = 18
    guidance: float = 0.25


def demo_config(size: int) -> DiMRConfig:
    """Three branches at size/4, size/2 and size."""
    return DiMRConfig(
        in_channels=1,
        input_size=size,
        dims=(128, 64, 32),
        layers=(2, 2, 1),
        num_heads=4,
        num_classes=NUM_CLASSES,
        unconditional_class=True,
        kernel_size=3,
        mlp_ratio=2,
        norm="td_rms",
    )


def demo_training(seed: int, steps: int | None = None) -> TrainingSettings:
    """High rates and a short average: what a run of a thousand steps, not a hundred thousand, wants."""
    steps = steps or 1000
    return TrainingSettings(
        steps=steps,
        batch_size=128,
        learning_rate=6e-3,
        warmup_steps=min(50, steps),
        ema_decay=0.98,  # an average over about the last 50 steps
        seed=seed,
    )
