"""The Frechet distance between two Gaussians, of which FID is the case of Inception's features."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import EvaluationError
from .statistics import Moments


def frechet_distance(first: Moments, second: Moments) -> float:
    """``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`` (Dowson and Landau 1982; Heusel et al. 2017, eq. 6).

    The trace of the root is the sum of the singular values of ``S1^(1/2) S2^(1/2)``. Eigenvalues of S1 and S2 that
    are rounding errors are dropped first, and no root is taken of a difference, so singular covariances (fewer images
    than features) need no added diagonal and equal ones are at distance 0.
    """
    if first.mean.shape != second.mean.shape:
        raise EvaluationError(f"statistics of {len(first.mean)} and of {len(second.mean)} features cannot be compared")
    shift = (first.mean - second.mean).square().sum()
    overlap = torch.linalg.svdvals(_root(first.covariance).T @ _root(second.covariance)).sum()
    spread = first.covariance.trace() + second.covariance.trace() - 2 * overlap
    return max(0.0, (shift + spread).item())


def _root(covariance: Tensor) -> Tensor:
    """``A [D, rank]`` with ``A A^T = covariance``."""
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    smallest = len(values) * torch.finfo(values.dtype).eps * values[-1].clamp(min=0)
    kept = values > smallest
    return vectors[:, kept] * values[kept].sqrt()
