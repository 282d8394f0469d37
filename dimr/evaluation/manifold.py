"""Improved precision and recall: how far two sets of features lie within each other's neighbourhoods."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .errors import EvaluationError

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
