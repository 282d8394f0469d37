"""The demo's training: start or resume, save periodically, stop on Ctrl-C."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from ..checkpoints import save_model
from ..data.digits import NUM_CLASSES, LabelledImages, load_digits, split
from ..model.config import DiMRConfig
from ..model.network import DiMR
from ..training.checkpoint import load_training_state, save_training_state
from ..training.loop import BatchSource, Trainer
from ..training.recipe import TrainingSettings
from ..training.run import train as train_and_save

WANTED_ACCURACY = 0.85  # smallest share of samples that must be recognised as their class
STEPS_PER_SAVE = 200
HELD_OUT = 600  # of 1,797 digits, for the classifier


@dataclasses.dataclass(frozen=True)
class DemoFolder:
    """Paths of the files in the demo's output folder."""

    root: Path

    @property
    def state(self) -> Path:
        """The run's whole state, for ``--resume``."""
        return self.root / "training_state.pt"

    @property
    def checkpoint(self) -> Path:
        """The averaged weights, in the form that ``dimr sample`` reads."""
        return self.root / "checkpoint"

    @property
    def samples(self) -> Path:
        return self.root / "samples.png"

    @property
    def losses(self) -> Path:
        return self.root / "losses.png"

    @property
    def report(self) -> Path:
        return self.root / "report.json"


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
    """Settings of the samples that the demo shows and measures."""

    per_class: int = 100
    steps: int = 18
    guidance: float = 0.25


def demo_config(size: int) -> DiMRConfig:
    """Return a configuration with three branches, at size/4, size/2 and size."""
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
    """Return settings for a run of a thousand steps: a high learning rate and a short average."""
    steps = steps or 1000
    return TrainingSettings(
        steps=steps,
        batch_size=128,
        learning_rate=6e-3,
        warmup_steps=min(50, steps),
        ema_decay=0.98,  # an average over about the last 50 steps
        seed=seed,
    )


def training_and_held_out(size: int) -> tuple[LabelledImages, LabelledImages]:
    """Load the digits that the model is trained on, and those that it never sees."""
    return split(load_digits(size), HELD_OUT)


def random_batches(data: LabelledImages, batch_size: int, device: torch.device) -> BatchSource:
    """Return a source of batches drawn with replacement, with the whole data set on the device."""
    images, labels = data.images.to(device), data.labels.to(device)

    def draw(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.randint(len(labels), (batch_size,), device=device, generator=generator)
        return images[chosen], labels[chosen]

    return draw


def new_trainer(config: DiMRConfig, settings: TrainingSettings, device: torch.device) -> Trainer:
    """Start a run with weights from the settings' seed; torch's own generator stays unchanged."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = DiMR(config).to(device)
    digits, _ = training_and_held_out(config.input_size)
    return Trainer(model, random_batches(digits, settings.batch_size, device), settings)


def resumed_trainer(folder: DemoFolder, device: torch.device) -> Trainer:
    """Continue the run in ``folder``.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: its state is damaged.
    """
    state = load_training_state(folder.state)
    config, settings = DiMRConfig.from_dict(state["config"]), TrainingSettings.from_dict(state["settings"])
    trainer = new_trainer(config, settings, device)
    trainer.load_state_dict(state)
    return trainer


def save(trainer: Trainer, folder: DemoFolder) -> None:
    """Save the state for resuming, and the averaged weights for sampling."""
    save_training_state(folder.state, trainer)
    with trainer.ema.applied():
        save_model(trainer.model, folder.checkpoint)


def train(trainer: Trainer, folder: DemoFolder) -> bool:
    """Train to the end or to Ctrl-C, and save; True if the run came to its end."""
    return train_and_save(trainer, lambda: save(trainer, folder), STEPS_PER_SAVE) == 0
