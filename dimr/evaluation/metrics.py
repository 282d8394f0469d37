"""What the caller of an evaluation can put right."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..utils import UserError, require


class EvaluationError(UserError, ValueError):
    """Samples, a reference or a feature extractor that cannot be evaluated; the message names it."""


# Mean and covariance of features that do not fit in memory together.


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


# The Frechet distance between two Gaussians, of which FID is the case of Inception's features.


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


# Improved precision and recall: how far two sets of features lie within each other's neighbourhoods.


ELEMENTS_AT_A_TIME = 2**26  # of a block of distances: 256 MiB in float32


def precision_and_recall(samples: Tensor, reference: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Shares of samples within the reference's manifold, and of references within the samples'.

    Kynkaanniemi et al. 2019, algorithm 1: a manifold is the union of balls about each point, with the distance to its
    k-th nearest neighbour in the same set as radius. Distances are computed in blocks, so memory grows with N, not N^2.

    Args:
        samples: ``[N, D]``; in float32 points at distances below about 1e-3 of their spread count as equally near.
        reference: ``[M, D]``, of the same type and device.
        neighbours: k; both sets need more points than that.
    """
    for name, points in (("samples", samples), ("reference", reference)):
        if points.dim() != 2 or points.shape[1] != reference.shape[-1]:
            raise EvaluationError(f"{name}: wanted [N, {reference.shape[-1]}], got {list(points.shape)}")
        if len(points) <= neighbours:
            raise EvaluationError(f"{name}: {neighbours} neighbours need more points than that, got {len(points)}")
    centre = reference.mean(dim=0)  # a common offset would cost the distances digits
    samples, reference = samples - centre, reference - centre
    precision = _share_within(samples, reference, _radii(reference, neighbours))
    recall = _share_within(reference, samples, _radii(samples, neighbours))
    return precision, recall


def _radii(points: Tensor, neighbours: int) -> Tensor:
    """Distance of each of ``points [N, D]`` to its k-th nearest other one: ``[N]``."""
    radii = []
    for start in _block_starts(len(points), len(points)):
        block = points[start : start + _rows(len(points))]
        distances = torch.cdist(block, points)  # [rows, N]
        own = torch.arange(len(block), device=points.device)
        distances[own, own + start] = math.inf
        radii.append(distances.topk(neighbours, dim=1, largest=False).values[:, -1])
    return torch.cat(radii)


def _share_within(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    """Share of ``points [N, D]`` in any of the balls about ``centres [M, D]``."""
    inside = 0
    for start in _block_starts(len(points), len(centres)):
        block = points[start : start + _rows(len(centres))]
        inside += int((torch.cdist(block, centres) <= radii).any(dim=1).sum())
    return inside / len(points)


def _rows(columns: int) -> int:
    return max(1, ELEMENTS_AT_A_TIME // columns)


def _block_starts(count: int, columns: int) -> range:
    return range(0, count, _rows(columns))


# The Inception Score, for the logits of any classifier.


SHUFFLE_SEED = 2020  # with it the splits are torch-fidelity's


def shuffled_splits(count: int, splits: int) -> Tensor:
    """The split of each of ``count`` images: ``[count]``, shuffled because samples are often sorted by class."""
    order = require("numpy", "evaluate", "the Inception Score").random.RandomState(SHUFFLE_SEED).permutation(count)
    ends = torch.tensor([(i + 1) * count // splits for i in range(splits)])
    assigned = torch.empty(count, dtype=torch.int64)
    assigned[torch.from_numpy(order).long()] = torch.searchsorted(ends, torch.arange(count), right=True)
    return assigned


class ClassifierScore:
    """``exp(E_x KL(p(y|x) || p(y)))``, mean and deviation over splits (Salimans et al. 2016, section 4).

    Needs only sums over the images of each split, so memory does not grow with the images and parts can be merged.
    """

    def __init__(self, splits: int, classes: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(splits, dtype=torch.float64, device=device)
        self.probabilities = torch.zeros(splits, classes, dtype=torch.float64, device=device)  # sums of p
        self.negative_entropies = torch.zeros(splits, dtype=torch.float64, device=device)  # sums of p log p

    def update(self, logits: Tensor, split: Tensor) -> None:
        """Add ``logits [B, classes]`` of images in the splits ``[B]``."""
        if logits.dim() != 2 or logits.shape[1] != self.probabilities.shape[1]:
            raise EvaluationError(f"logits: wanted [B, {self.probabilities.shape[1]}], got {list(logits.shape)}")
        if not torch.isfinite(logits).all():
            raise EvaluationError("logits: found values that are not finite")
        log_p = logits.to(self.counts).log_softmax(dim=1)
        p = log_p.exp()
        split = split.to(p.device)
        self.counts += torch.bincount(split, minlength=len(self.counts))
        self.probabilities.index_add_(0, split, p)
        self.negative_entropies.index_add_(0, split, (p * log_p).sum(dim=1))

    def merge(self, other: ClassifierScore) -> None:
        """Add what ``other`` has seen."""
        self.counts += other.counts.to(self.counts)
        self.probabilities += other.probabilities.to(self.counts)
        self.negative_entropies += other.negative_entropies.to(self.counts)

    def value(self) -> tuple[float, float]:
        """Mean and deviation (divided by the number of splits) over the splits. Every split needs an image."""
        if (self.counts == 0).any():
            raise EvaluationError(f"{len(self.counts)} splits need as many images, got {int(self.counts.sum())}")
        marginal = self.probabilities / self.counts[:, None]
        divergence = self.negative_entropies / self.counts - torch.special.xlogy(marginal, marginal).sum(dim=1)
        scores = divergence.exp()
        return scores.mean().item(), scores.std(correction=0).item()
