"""More samples than fit in one batch, in one process or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .optional import require
from .sampling import NoisePredictor, sample
from .training.processes import Processes


def noise_of(indices: Sequence[int], shape: Sequence[int], seed: int, pin_memory: bool = False) -> Tensor:
    """``[N, *shape]`` on the CPU: a sample's noise depends on the seed and its own number alone."""
    require("numpy", "demo", "sampling by number")
    from .data.randomness import SampleRandom

    noise = torch.empty(len(indices), *shape, pin_memory=pin_memory)
    for row, index in zip(noise, indices, strict=True):
        row.copy_(SampleRandom(seed, 0, index).normal(shape))
    return noise


def sample_in_batches(
    model: NoisePredictor,
    class_labels: Tensor,
    seed: int,
    batch_size: int,
    processes: Processes | None = None,
    **options: Any,
) -> Tensor:
    """:func:`dimr.sample` for ``class_labels [N]``, ``batch_size`` at a time under a progress bar.

    Several processes take the batches in turns; each must call this. On a GPU the batches follow one another without a
    gap: noise and samples are copied from and to pinned memory, and the host waits once, at the end.

    Returns:
        ``[N, C, S, S]`` float32 on the CPU, in all processes. The noise is drawn there (:func:`noise_of`): neither the
        device, nor the batch size, nor the number of processes changes it.
    """
    config, N = model.config, len(class_labels)
    processes = Processes() if processes is None else processes
    on_gpu = model.device.type == "cuda"
    shape = (config.in_channels, config.input_size, config.input_size)
    samples = torch.zeros(N, *shape, pin_memory=on_gpu)
    class_labels = class_labels.to(model.device)
    tqdm = require("tqdm", "demo", "the progress bar").tqdm
    starts = range(processes.rank * batch_size, N, processes.world_size * batch_size)
    for start in tqdm(starts, desc="sampling", unit="batch", dynamic_ncols=True, disable=not processes.first):
        part = range(start, min(start + batch_size, N))
        noise = noise_of(part, shape, seed, pin_memory=on_gpu)
        drawn = sample(model, class_labels[part.start : part.stop], noise, **options)
        samples[part.start : part.stop].copy_(drawn, non_blocking=True)
    if on_gpu:
        torch.cuda.current_stream(model.device).synchronize()
    return processes.total(samples)  # each has zeros where another drew
