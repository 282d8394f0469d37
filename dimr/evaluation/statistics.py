"""Mean and covariance of features that do not fit in memory together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .errors import EvaluationError


class Moments(NamedTuple):
    """Of a distribution of features: ``mean [D]`` and ``covariance [D, D]``, float64."""

    mean: Tensor
    covariance: Tensor


class FeatureStatistics:
    """Count, mean and scatter of rows that come in batches, in float64.

    Memory is that of one ``[D, D]`` matrix and of one batch, however many rows come. Each batch is centred on its own
    mean before its products are summed, and means are joined as in Chan, Golub and LeVeque (1979), so a large common
    offset of the features costs no digits. Statistics of parts, of several processes say, :meth:`merge` into those of
    the whole.
    """

    def __init__(self, dimension: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.mean = torch.zeros(dimension, dtype=torch.float64, device=device)
        # Sum over rows of (row - mean)(row - mean)^T.
        self.scatter = torch.zeros(dimension, dimension, dtype=torch.float64, device=device)

    def update(self, features: Tensor) -> None:
        """Add rows ``[B, D]`` of any floating type. Values that are not finite are an :class:`EvaluationError`."""
        if features.dim() != 2 or features.shape[1] != len(self.mean):
            raise EvaluationError(f"features: wanted [B, {len(self.mean)}], got {list(features.shape)}")
        if len(features) == 0:
            return
        if not torch.isfinite(features).all():
            raise EvaluationError("features: found values that are not finite")
        rows = features.to(self.mean)
        mean = rows.mean(dim=0)
        joined = self._join_means(len(rows), mean)
        # The correction for the two means is a row like any other, so all of it is one product, in place.
        rows = torch.cat([rows - mean, joined[None]])
        self.scatter.addmm_(rows.T, rows)

    def merge(self, other: FeatureStatistics) -> None:
        """Add what ``other`` has seen."""
        if other.mean.shape != self.mean.shape:
            raise EvaluationError(f"other: wanted {len(self.mean)} features, got {len(other.mean)}")
        if other.count == 0:
            return
        joined = self._join_means(other.count, other.mean.to(self.mean))
        self.scatter += other.scatter.to(self.scatter)
        self.scatter.addr_(joined, joined)

    def moments(self) -> Moments:
        """Mean and unbiased covariance (divided by N - 1, as ``numpy.cov``)."""
        if self.count < 2:
            raise EvaluationError(f"a covariance needs at least 2 images, got {self.count}")
        return Moments(self.mean, self.scatter / (self.count - 1))

    def _join_means(self, count: int, mean: Tensor) -> Tensor:
        """Move to the common mean; the vector whose outer product with itself the scatter still lacks."""
        total = self.count + count
        difference = mean - self.mean
        missing = difference * (self.count * count / total) ** 0.5
        self.mean += difference * (count / total)
        self.count = total
        return missing
