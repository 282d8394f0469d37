"""More samples than fit in one batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .optional import require
from .sampling import NoisePredictor, sample


def sample_in_batches(
    model: NoisePredictor, class_labels: Tensor, seed: int, batch_size: int, **options: Any
) -> Tensor:
    """:func:`dimr.sample` for ``class_labels [N]``, ``batch_size`` at a time under a progress bar.

    On a GPU the batches follow one another without a gap: noise and samples are copied from and to pinned memory, and
    the host waits once, at the end.

    Returns:
        ``[N, C, S, S]`` float32 on the CPU. The noise is drawn there, all at once: neither the device nor the batch
        size changes it.
    """
    config, N = model.config, len(class_labels)
    on_gpu = model.device.type == "cuda"
    generator = torch.Generator().manual_seed(seed)
    shape = (N, config.in_channels, config.input_size, config.input_size)
    noise = torch.randn(shape, generator=generator, pin_memory=on_gpu)
    samples = torch.empty(shape, pin_memory=on_gpu)
    class_labels = class_labels.to(model.device)
    tqdm = require("tqdm", "demo", "the progress bar").tqdm
    for start in tqdm(range(0, N, batch_size), desc="sampling", unit="batch", dynamic_ncols=True):
        part = slice(start, start + batch_size)
        drawn = sample(model, class_labels[part], noise[part], **options)
        samples[part].copy_(drawn, non_blocking=True)
    if on_gpu:
        torch.cuda.current_stream(model.device).synchronize()
    return samples
