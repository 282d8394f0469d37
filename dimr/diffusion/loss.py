"""The multi-scale training loss (paper, section 3.4)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def noise_target(noise: Tensor, size: int) -> Tensor:
    """Compute the noise that a branch of ``size x size`` predicts: ``[B, C, S, S]`` -> ``[B, C, size, size]``.

    This is an average pool times its kernel width, which preserves the unit variance of white noise.
    """
    if noise.dim() != 4 or noise.shape[-1] != noise.shape[-2] or size < 1 or noise.shape[-1] % size:
        raise ValueError(f"noise must have shape [B, C, S, S], S a multiple of {size}, got {list(noise.shape)}")
    width = noise.shape[-1] // size
    return noise if width == 1 else F.avg_pool2d(noise, width) * width


def branch_losses(outputs: Sequence[Tensor], noise: Tensor) -> tuple[Tensor, ...]:
    """Compute each branch's mean squared error ``[B]``, float32 and not weighted, from a model's outputs."""
    if not isinstance(outputs, (tuple, list)) or not outputs:
        raise TypeError("outputs must be a non-empty tuple of predictions, as the model returns it")
    losses = []
    for i, out in enumerate(outputs):
        target = noise_target(noise, out.shape[-1])
        if out.shape != target.shape:
            raise ValueError(f"outputs[{i}] must have shape {list(target.shape)} for this noise, got {list(out.shape)}")
        losses.append((out.float() - target.float()).square().flatten(1).mean(dim=1))
    return tuple(losses)


def multi_scale_loss(outputs: Sequence[Tensor], noise: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """Sum the branches' mean squared errors, weighted by ``1 / 4**(levels below the finest)``, per sample.

    Args:
        outputs: predictions ``[B, C, s, s]``, lowest resolution first.
        noise: ``[B, C, S, S]``, the noise that was added to the clean input.
        weights: other weights, one per branch; ``(0, 0, 1)`` trains on the finest prediction only.

    Returns:
        ``[B]`` float32.

    Example:
        >>> import torch
        >>> noise = torch.zeros(2, 3, 8, 8)
        >>> multi_scale_loss((torch.ones(2, 3, 4, 4), torch.ones(2, 3, 8, 8)), noise)  # 1/4 + 1
        tensor([1.2500, 1.2500])
    """
    return weighted_sum(branch_losses(outputs, noise), weights)


def weighted_sum(losses: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """Compute :func:`multi_scale_loss` from the result of :func:`branch_losses`."""
    if weights is None:
        weights = [0.25 ** (len(losses) - 1 - i) for i in range(len(losses))]
    elif len(weights) != len(losses) or not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        raise ValueError(f"weights must be {len(losses)} finite numbers of at least 0, got {list(weights)}")
    first, *others = (weight * loss for weight, loss in zip(weights, losses, strict=True))
    return sum(others, first)
