"""Errors of models on unseen pictures, by timestep; see docs/photographs.md.

python docs/photographs/errors.py PICTURES.npz RUN ...
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import torch
from torch import Tensor

from dimr.checkpoints.weights import load_model
from dimr.data.opening import open_dataset
from dimr.data.spec import DataSpec
from dimr.diffusion.schedule import NoiseSchedule
from dimr.model.network import DiMR

TIMESTEPS = (5, 50, 200, 500, 800, 990)  # of 1000; higher ones have more noise
EVERY = 25  # every 25th picture


def main(pictures: str, *runs: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    dataset = open_dataset(DataSpec(pictures, image_size=64, flip=False))
    chosen = range(0, len(dataset), EVERY)
    images = torch.stack([dataset.load(i) for i in chosen]).float() / 127.5 - 1  # [B, 3, 64, 64]
    labels = torch.from_numpy(dataset.labels[chosen])
    logging.info("%d pictures; timesteps %s", len(images), TIMESTEPS)
    models = {run: load_model(Path(run) / "model") for run in runs}
    for name, model in {"the noised picture itself": None, **models}.items():
        errors = [_error(model, images, labels, t) for t in TIMESTEPS]
        logging.info("%s: %s", name, " ".join(f"{error:.4f}" for error in errors))


@torch.inference_mode()
def _error(model: DiMR | None, images: Tensor, labels: Tensor, t: int) -> float:
    """Mean squared error of the finest branch's noise, or of what it is looked for in. The noise is always the same."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(t))
    timestep = torch.full((len(images),), t)
    noised = NoiseSchedule().add_noise(images, noise, timestep)
    found = noised if model is None else model(noised, timestep, labels)[-1]
    return (found - noise).square().mean().item()


if __name__ == "__main__":
    main(*sys.argv[1:])
