"""The demo's picture: each class a row, samples beside real digits."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.digits import NUM_CLASSES, LabelledImages
from ..images import save_image, side_by_side, tile
from .folder import DemoFolder

COLUMNS = 10
SHOWN_SIZE = 40  # pixels across one digit


def first_of_each_class(data: LabelledImages, count: int) -> Tensor:
    return torch.cat([data.images[data.labels == c][:count] for c in range(NUM_CLASSES)])


def save_sample_grid(folder: DemoFolder, samples: LabelledImages, real: LabelledImages) -> None:
    columns = min(COLUMNS, len(samples) // NUM_CLASSES)
    zoom = max(1, SHOWN_SIZE // samples.images.shape[-1])
    panels = [
        (title, tile(first_of_each_class(data, columns), columns, zoom))
        for title, data in (("Samples", samples), ("Real digits, held out", real))
    ]
    save_image(folder.samples, side_by_side(panels, [str(c) for c in range(NUM_CLASSES)]))
