"""The demo's training: begin or go on, save now and then, stop on Ctrl-C."""

from __future__ import annotations

import torch

from ..checkpoints import save_model
from ..config import DiMRConfig
from ..data.digits import LabelledImages, load_digits, split
from ..network import DiMR
from ..training.checkpoint import load_training_state, save_training_state
from ..training.loop import Trainer
from ..training.progress import train as train_and_save
from ..training.settings import TrainingSettings
from .folder import DemoFolder

STEPS_PER_SAVE = 200
HELD_OUT = 600  # of 1,797 digits, for the classifier


def training_and_held_out(size: int) -> tuple[LabelledImages, LabelledImages]:
    """The digits that the model learns from, and those that it never sees."""
    return split(load_digits(size), HELD_OUT)


def random_batches(data: LabelledImages, batch_size: int, device: torch.device):
    """Batches drawn with replacement; the whole data set lies on the device."""
    images, labels = data.images.to(device), data.labels.to(device)

    def draw(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = torch.randint(len(labels), (batch_size,), device=device, generator=generator)
        return images[chosen], labels[chosen]

    return draw


def new_trainer(config: DiMRConfig, settings: TrainingSettings, device: torch.device) -> Trainer:
    """A run at its first step. The seed decides the weights, and leaves torch's global generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = DiMR(config).to(device)
    digits, _ = training_and_held_out(config.input_size)
    return Trainer(model, random_batches(digits, settings.batch_size, device), settings)


def resumed_trainer(folder: DemoFolder, device: torch.device) -> Trainer:
    """The run that ``folder`` holds, where it stopped.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is damaged, or was on another kind of device.
    """
    state = load_training_state(folder.state)
    config, settings = DiMRConfig.from_dict(state["config"]), TrainingSettings.from_dict(state["settings"])
    trainer = new_trainer(config, settings, device)
    trainer.load_state_dict(state)
    return trainer


def save(trainer: Trainer, folder: DemoFolder) -> None:
    """The state for going on, and the averaged weights for sampling."""
    save_training_state(folder.state, trainer)
    with trainer.ema.applied():
        save_model(trainer.model, folder.checkpoint)


def train(trainer: Trainer, folder: DemoFolder) -> bool:
    """Train to the end or to Ctrl-C, and save. True if it came to the end."""
    return train_and_save(trainer, lambda: save(trainer, folder), STEPS_PER_SAVE) == 0
