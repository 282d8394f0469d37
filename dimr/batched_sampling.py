"""More samples than fit in one batch."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .optional import require
from .sampling import NoisePredictor, sample


def sample_in_batches(
    model: NoisePredictor, class_labels: Tensor, seed: int, batch_size: int, **options: Any
) -> Tensor:
    """:func:`dimr.sample` for ``class_labels [N]``, ``batch_size`` at a time under a progress bar.

    Returns:
        ``[N, C, S, S]`` float32 on the CPU. The noise is drawn there, all at once: neither the device nor the batch
        size changes it.
    """
    config, N = model.config, len(class_labels)
    generator = torch.Generator().manual_seed(seed)
    shape = (N, config.in_channels, config.input_size, config.input_size)
    noise = torch.randn(shape, generator=generator, pin_memory=model.device.type == "cuda")
    batches = list(zip(class_labels.to(model.device).split(batch_size), noise.split(batch_size), strict=True))
    tqdm = require("tqdm", "demo", "the progress bar").tqdm
    drawn = draw_batches(model, batches, **options)
    return torch.cat(list(tqdm(drawn, total=len(batches), desc="sampling", unit="batch", dynamic_ncols=True)))


def draw_batches(model: NoisePredictor, batches: Iterable[tuple[Tensor, Tensor]], **options: Any) -> Iterator[Tensor]:
    """:func:`dimr.sample` of one ``(class_labels [B], noise [B, C, S, S])`` after another, each on the CPU.

    A GPU's batch is handed out once the next is queued, through pinned memory: the device works on while the caller
    decodes or writes.
    """
    ahead = 1 if model.device.type == "cuda" else 0
    queued: deque[Callable[[], Tensor]] = deque()
    for class_labels, noise in batches:
        queued.append(_to_host(sample(model, class_labels, noise, **options)))
        if len(queued) > ahead:
            yield queued.popleft()()
    while queued:
        yield queued.popleft()()


def _to_host(samples: Tensor) -> Callable[[], Tensor]:
    """Start the copy; the result waits for it."""
    if samples.device.type != "cuda":
        return lambda: samples
    host = torch.empty(samples.shape, pin_memory=True).copy_(samples, non_blocking=True)
    copied = torch.cuda.current_stream(samples.device).record_event()

    def wait() -> Tensor:
        copied.synchronize()
        return host

    return wait


def numbered_noise(shape: Sequence[int], seed: int, numbers: Sequence[int], pin_memory: bool = False) -> Tensor:
    """``[B, *shape]`` on the CPU: the noise of the images with these numbers, each from a generator of its own.

    So an image depends on ``seed`` and its number, not on what else is drawn with it, before it or elsewhere. torch's
    CPU generator takes 32 bits of a seed: counting on from the hash of ``seed``, no two images of a run share them.
    """
    start = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], "little")
    noise = torch.empty((len(numbers), *shape), pin_memory=pin_memory)
    for row, number in zip(noise, numbers, strict=True):
        row.normal_(generator=torch.Generator().manual_seed((start + number) % 2**32))
    return noise
