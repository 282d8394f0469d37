"""Scikit-learn's handwritten digits: 1,797 scans of 8x8 pixels (UCI "Optical Recognition of Handwritten Digits").

They are part of scikit-learn's wheel, so nothing is downloaded.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..utils import require

NUM_CLASSES = 10
NATIVE_SIZE = 8


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """``images [N, 1, S, S]`` float32 in [-1, 1] and ``labels [N]`` int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def load_digits(size: int = NATIVE_SIZE) -> LabelledImages:
    """Load all digits, enlarged bilinearly if ``size`` is a larger multiple of 8.

    Raises:
        ValueError: ``size`` is not a positive multiple of 8.
        MissingPackageError: scikit-learn is not installed.
    """
    if size < NATIVE_SIZE or size % NATIVE_SIZE:
        raise ValueError(f"size must be a multiple of {NATIVE_SIZE}, got {size}")
    bunch = require("sklearn.datasets", "demo", "the digits data set").load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None] / 8 - 1  # grey levels 0 .. 16 -> [-1, 1]
    if size != NATIVE_SIZE:
        images = interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    return LabelledImages(images, torch.from_numpy(bunch.target).long())


def split(data: LabelledImages, held_out: int, seed: int = 0) -> tuple[LabelledImages, LabelledImages]:
    """Split into the rest and about ``held_out`` images, with the same share of each class in both parts."""
    if not 0 < held_out < len(data):
        raise ValueError(f"held_out must be between 1 and {len(data) - 1}, got {held_out}")
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(data), dtype=torch.bool)
    for label in data.labels.unique().tolist():
        members = torch.nonzero(data.labels == label).flatten()
        count = round(held_out * len(members) / len(data))
        held[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return (
        LabelledImages(data.images[~held], data.labels[~held]),
        LabelledImages(data.images[held], data.labels[held]),
    )
