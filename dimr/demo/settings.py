"""What the demo does where its user does not say otherwise."""

from __future__ import annotations

import dataclasses

import torch

from ..config import DiMRConfig
from ..data.digits import NUM_CLASSES
from ..training.loop import TrainingSettings

# At least this share of the samples must be recognised as what was asked for.
WANTED_ACCURACY = 0.85


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
    """How the samples are drawn that the demo shows and measures."""

    per_class: int = 100
    steps: int = 21
    guidance: float = 1.0


def demo_config(size: int) -> DiMRConfig:
    """Three branches at size/4, size/2 and size."""
    return DiMRConfig(
        in_channels=1,
        input_size=size,
        dims=(128, 64, 32),
        layers=(4, 2, 2),
        num_heads=4,
        num_classes=NUM_CLASSES,
        unconditional_class=True,
        kernel_size=3,
        mlp_ratio=2,
        norm="td_rms",
    )


def demo_training(device: torch.device, seed: int, steps: int | None = None) -> TrainingSettings:
    """Many small steps on a CPU; on a GPU, which a small batch would leave idle, fewer large ones."""
    on_gpu = device.type == "cuda"
    steps = steps or (800 if on_gpu else 1400)
    return TrainingSettings(
        steps=steps,
        batch_size=256 if on_gpu else 128,
        learning_rate=2e-3,
        warmup_steps=min(50, steps),
        # Averages over about the last twentieth of the run.
        ema_decay=1 - min(1.0, 20 / steps),
        seed=seed,
    )
