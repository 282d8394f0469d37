"""Files of both packages that a training step and ``dimr sample`` enter: a reader follows them through no others."""

from __future__ import annotations

import pytest
import torch

import dimr
import dimr_kernels
from dimr.cli import main
from dimr.training.loop import Trainer
from dimr.training.recipe import TrainingSettings
from tests.support.files_entered import files_entered
from tests.support.small_models import TINY, perturbed_model

MOST_IN_A_STEP = 25
MOST_IN_SAMPLE = 28


def test_training_step():
    def batches(generator):
        images = torch.rand(2, TINY.in_channels, TINY.input_size, TINY.input_size, generator=generator)
        return 2 * images - 1, torch.zeros(2, dtype=torch.int64)

    settings = TrainingSettings(steps=2, batch_size=2, learning_rate=1e-3, warmup_steps=1, ema_decay=0.9)
    trainer = Trainer(perturbed_model(), batches, settings)
    entered = files_entered(trainer.train_step, dimr, dimr_kernels)
    assert {"dimr/training/loop.py", "dimr/model/layers.py", "dimr_kernels/dispatch.py"} <= entered
    assert len(entered) <= MOST_IN_A_STEP, sorted(entered)


def test_sample_command(tmp_path):
    for package in ("PIL", "safetensors", "tqdm"):
        pytest.importorskip(package)
    folder = dimr.save_model(perturbed_model(), tmp_path / "model")
    options = ["--overwrite", "--per-class", "2", "--steps", "3", "--guidance", "1", "--device", "cpu"]

    def sample():
        assert main(["sample", str(folder), "--output", str(tmp_path / "samples.png"), *options]) == 0

    entered = files_entered(sample, dimr, dimr_kernels)
    assert {"dimr/commands/sample.py", "dimr/diffusion/samplers.py", "dimr/images.py"} <= entered
    assert len(entered) <= MOST_IN_SAMPLE, sorted(entered)
