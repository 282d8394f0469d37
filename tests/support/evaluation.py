"""A small feature network, and images in the forms that an evaluation accepts."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn


class Tiny(nn.Module):
    """Network from uint8 images to 6 features, 3 logits and a map, with fixed random weights."""

    def __init__(self, parts: tuple[str, ...] = ("features", "logits", "spatial")) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(9, 3, 2, 2, generator=generator))
        self.dropout = nn.Dropout(0.5)  # off in evaluation mode only
        self.parts = parts

    def forward(self, images: Tensor):
        spatial = self.dropout(torch.conv2d(images.float() / 64, self.weight, stride=2).abs())
        pooled = spatial.mean((2, 3))
        outputs = {"features": pooled[:, :6], "logits": pooled[:, 6:], "spatial": spatial}
        return {key: outputs[key] for key in self.parts} if len(self.parts) > 1 else outputs["features"]


def images(count: int, seed: int = 0, size: int = 6) -> Tensor:
    """Make random images, uint8 ``[N, 3, S, S]``."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randint(0, 100 + 20 * seed, (count, 3, 1, 1), generator=generator)
    return (low + torch.randint(0, 90, (count, 3, size, size), generator=generator)).clamp(0, 255).to(torch.uint8)


def as_folder(folder: Path, pixels: Tensor) -> Path:
    from PIL import Image

    folder.mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:03}.png")
    return folder


def as_npz(path: Path, pixels: Tensor, **more) -> Path:
    import numpy

    numpy.savez(path, arr_0=pixels.permute(0, 2, 3, 1).numpy(), **more)
    return path


def values(report) -> dict[str, float | None]:
    return {metric.name: metric.value for metric in report.metrics}
