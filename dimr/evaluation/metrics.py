"""The metrics, on features: Frechet distance, classifier score (Inception Score), precision and recall."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..utils import UserError, require


class EvaluationError(UserError, ValueError):
    """Samples, a reference or a feature extractor that cannot be evaluated; the message names it."""


class Moments(NamedTuple):
    """Mean and covariance of a distribution of features, float64."""

    mean: Tensor  # [D]
    covariance: Tensor  # [D, D]


class FeatureStatistics:
    """Running count, mean and scatter matrix of features that come in batches, in float64.

    Memory is that of one ``[D, D]`` matrix and one batch, whatever the number of rows. Each batch is centred on its own
    mean before its products are summed, and means are combined as in Chan, Golub and LeVeque (1979), so that a large
    offset common to all features costs no accuracy.
    """

    def __init__(self, dimension: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.mean = torch.zeros(dimension, dtype=torch.float64, device=device)
        # The sum over rows of (row - mean)(row - mean)^T.
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
        batch_mean = rows.mean(dim=0)
        total = self.count + len(rows)
        difference = batch_mean - self.mean
        self.mean += difference * (len(rows) / total)
        # The correction for the two means is the outer product of one more row, so that one product does it all.
        correction = difference * (self.count * len(rows) / total) ** 0.5
        rows = torch.cat([rows - batch_mean, correction[None]])
        self.scatter.addmm_(rows.T, rows)
        self.count = total

    def moments(self) -> Moments:
        """Return the mean and the unbiased covariance, divided by N - 1 as in ``numpy.cov``."""
        if self.count < 2:
            raise EvaluationError(f"a covariance needs at least 2 images, got {self.count}")
        return Moments(self.mean, self.scatter / (self.count - 1))


def frechet_distance(first: Moments, second: Moments) -> float:
    """Compute ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`` (Dowson and Landau 1982; Heusel et al. 2017, eq. 6).

    On Inception's features this is FID. The trace of the root is the sum of the singular values of
    ``S1^(1/2) S2^(1/2)``. Eigenvalues of S1 and S2 that are rounding errors are dropped first, so that singular
    covariances (fewer images than features) need no added diagonal and equal ones are at distance 0.
    """
    if first.mean.shape != second.mean.shape:
        raise EvaluationError(f"statistics of {len(first.mean)} and of {len(second.mean)} features cannot be compared")
    shift = (first.mean - second.mean).square().sum()
    overlap = torch.linalg.svdvals(_root(first.covariance).T @ _root(second.covariance)).sum()
    spread = first.covariance.trace() + second.covariance.trace() - 2 * overlap
    return max(0.0, (shift + spread).item())


def _root(covariance: Tensor) -> Tensor:
    """Compute ``A [D, rank]`` with ``A A^T = covariance``."""
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    smallest = len(values) * torch.finfo(values.dtype).eps * values[-1].clamp(min=0)
    kept = values > smallest
    return vectors[:, kept] * values[kept].sqrt()


ELEMENTS_AT_A_TIME = 2**26  # of a block of distances: 256 MiB in float32


def precision_and_recall(samples: Tensor, reference: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Compute the share of samples in the reference's manifold, and of references in the samples' manifold.

    A manifold is the union of balls around the points of a set, each with the distance to the k-th nearest other point
    as its radius (Kynkaanniemi et al. 2019, algorithm 1). Distances are computed in blocks, so that memory grows with
    N and not with N^2.

    Args:
        samples: ``[N, D]``. In float32, distances below about 1e-3 of the points' spread count as equal.
        reference: ``[M, D]``, of the same type and device.
        neighbours: k; both sets need more points than that.
    """
    for name, points in (("samples", samples), ("reference", reference)):
        if points.dim() != 2 or points.shape[1] != reference.shape[-1]:
            raise EvaluationError(f"{name}: wanted [N, {reference.shape[-1]}], got {list(points.shape)}")
        if len(points) <= neighbours:
            raise EvaluationError(f"{name}: {neighbours} neighbours need more points than that, got {len(points)}")
    centre = reference.mean(dim=0)  # a common offset would make the distances less accurate
    samples, reference = samples - centre, reference - centre
    precision = _share_within(samples, reference, _radii(reference, neighbours))
    recall = _share_within(reference, samples, _radii(samples, neighbours))
    return precision, recall


def _radii(points: Tensor, neighbours: int) -> Tensor:
    """Compute the distance of each of ``points [N, D]`` to its k-th nearest other point, ``[N]``."""
    radii = []
    for start in _block_starts(len(points), len(points)):
        block = points[start : start + _rows(len(points))]
        distances = torch.cdist(block, points)  # [rows, N]
        own = torch.arange(len(block), device=points.device)
        distances[own, own + start] = math.inf
        radii.append(distances.topk(neighbours, dim=1, largest=False).values[:, -1])
    return torch.cat(radii)


def _share_within(points: Tensor, centres: Tensor, radii: Tensor) -> float:
    """Compute the share of ``points [N, D]`` in any of the balls around ``centres [M, D]``."""
    inside = 0
    for start in _block_starts(len(points), len(centres)):
        block = points[start : start + _rows(len(centres))]
        inside += int((torch.cdist(block, centres) <= radii).any(dim=1).sum())
    return inside / len(points)


def _rows(columns: int) -> int:
    return max(1, ELEMENTS_AT_A_TIME // columns)


def _block_starts(count: int, columns: int) -> range:
    return range(0, count, _rows(columns))


SHUFFLE_SEED = 2020  # torch-fidelity's, so that the splits are the same


def shuffled_splits(count: int, splits: int) -> Tensor:
    """Assign ``count`` images to splits at random, ``[count]``, because samples are often sorted by class."""
    order = require("numpy", "evaluate", "the Inception Score").random.RandomState(SHUFFLE_SEED).permutation(count)
    ends = torch.tensor([(i + 1) * count // splits for i in range(splits)])
    assigned = torch.empty(count, dtype=torch.int64)
    assigned[torch.from_numpy(order).long()] = torch.searchsorted(ends, torch.arange(count), right=True)
    return assigned


class ClassifierScore:
    """Inception Score of any classifier: ``exp(E_x KL(p(y|x) || p(y)))`` (Salimans et al. 2016, section 4).

    Only sums over the images of each split are kept, so that memory does not grow with the number of images.
    """

    def __init__(self, splits: int, classes: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(splits, dtype=torch.float64, device=device)
        self.probabilities = torch.zeros(splits, classes, dtype=torch.float64, device=device)  # sums of p
        self.negative_entropies = torch.zeros(splits, dtype=torch.float64, device=device)  # sums of p log p

    def update(self, logits: Tensor, split: Tensor) -> None:
        """Add ``logits [B, classes]`` of images, whose splits are ``[B]``."""
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

    def value(self) -> tuple[float, float]:
        """Return mean and deviation (divided by the number of splits) over the splits, none of which may be empty."""
        if (self.counts == 0).any():
            raise EvaluationError(f"{len(self.counts)} splits need as many images, got {int(self.counts.sum())}")
        marginal = self.probabilities / self.counts[:, None]
        divergence = self.negative_entropies / self.counts - torch.special.xlogy(marginal, marginal).sum(dim=1)
        scores = divergence.exp()
        return scores.mean().item(), scores.std(correction=0).item()
