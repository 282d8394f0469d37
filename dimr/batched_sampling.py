"""More samples than fit in one batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .network import DiMR
from .optional import require
from .sampling import sample


def sample_in_batches(model: DiMR, class_labels: Tensor, seed: int, batch_size: int, **options: Any) -> Tensor:
    """:func:`dimr.sample` for ``class_labels [N]``, ``batch_size`` at a time under a progress bar.

    Returns:
        ``[N, C, S, S]`` float32 on the CPU. The noise is drawn there, all at once: neither the device nor the batch
        size changes it.
    """
    config, N = model.config, len(class_labels)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(N, config.in_channels, config.input_size, config.input_size, generator=generator)
    tqdm = require("tqdm", "demo", "the progress bar").tqdm
    starts = tqdm(range(0, N, batch_size), desc="sampling", unit="batch", dynamic_ncols=True)
    parts = (slice(start, start + batch_size) for start in starts)
    return torch.cat([sample(model, class_labels[part], noise[part], **options).cpu() for part in parts])
