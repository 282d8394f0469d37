"""The buffer that holds everything a branch keeps: the output of its embedding and of every block, side by side.

One row per token, one slot of D channels per feature: ``[B, N, slots * D]``. A block writes its output straight into
its slot, and a whole row is what the cascade's norm reads, so nothing is ever concatenated. The order of the slots is
free, since the cascade's parameters can be put in the same order once and for all. It is chosen such that the two
inputs of every long skip are neighbours: ``[h, skip]`` is a view too, and the skip one ordinary product.
"""

from __future__ import annotations

import torch
from torch import Tensor


def slot_order(half: int) -> list[int]:
    """Which feature each slot holds, for ``half`` blocks before and after the middle one.

    Feature 0 is the embedding, feature ``k`` the output of block ``k - 1``. Block ``half + j`` (j = 1 .. half) reads
    features ``half + j`` and, as its long skip, ``half + 1 - j``.
    """
    order = [0, 2 * half + 1]
    for j in range(1, half + 1):
        order += [half + j, half + 1 - j]
    return order


def column_order(half: int, dim: int) -> Tensor:
    """The channels of a cascade ``[(2 * half + 2) * dim]`` in the order of the slots."""
    slots = torch.tensor(slot_order(half))
    return (slots[:, None] * dim + torch.arange(dim)).flatten()


class FeatureBuffer:
    """Uninitialised slots for ``tokens`` tokens of each sample."""

    def __init__(self, batch: int, tokens: int, dim: int, half: int, like: Tensor) -> None:
        order = slot_order(half)
        self.dim = dim
        self.half = half
        self.all = like.new_empty(batch, tokens, len(order) * dim)
        self._start = {feature: slot * dim for slot, feature in enumerate(order)}

    def tokens(self, feature: int) -> Tensor:
        """``[B, N, D]``."""
        return self.all.narrow(2, self._start[feature], self.dim)

    def with_skip(self, block: int) -> Tensor:
        """The two inputs of a block behind the middle one: ``[B * N, 2D]``."""
        return as_rows(self.all.narrow(2, self._start[block], 2 * self.dim))


def as_rows(x: Tensor) -> Tensor:
    """``[B, N, D]`` -> ``[B * N, D]``, always a view."""
    return x.view(x.shape[0] * x.shape[1], x.shape[2])
