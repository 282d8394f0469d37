"""Random numbers that depend on their place alone: on (seed, epoch) for an order, on (seed, epoch, index) for a sample.

They come from Philox, a generator that computes any part of its stream from a key and a counter (Salmon et al., 2011);
numpy keeps its raw output the same from version to version.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# Each purpose has a part of the stream for itself.
ORDER, SAMPLE, REPLACEMENT = range(3)


def _stream(seed: int, epoch: int, index: int, purpose: int) -> np.random.Philox:
    return np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=np.array([0, index, 0, purpose], np.uint64))


def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: int64 ``[count]``."""
    return np.argsort(_stream(seed, epoch, 0, ORDER).random_raw(count), kind="stable")


def replacement(count: int, seed: int, epoch: int, index: int, attempt: int) -> int:
    """Which of ``count`` samples to try, for the ``attempt``-th time (from 0), in place of one that is unreadable."""
    return int(_stream(seed, epoch, index, REPLACEMENT).random_raw(attempt + 1)[-1] % np.uint64(count))


class SampleRandom:
    """The random numbers of one sample in one epoch."""

    def __init__(self, seed: int, epoch: int, index: int) -> None:
        self._bits = _stream(seed, epoch, index, SAMPLE)

    def coin(self) -> bool:
        return bool(self._bits.random_raw() & 1)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """float32, standard normal."""
        generator = torch.Generator().manual_seed(self._bits.random_raw() >> 1)
        return torch.randn(tuple(shape), generator=generator)
