"""The Frechet distance of singular covariances, against 50 digits.

There scipy's ``sqrtm`` of ``S1 S2``, which other implementations call, returns complex numbers, whose imaginary part is
far above rounding (1e-7 of the entries in float64, 1e-3 in float32), and the distance has that error.
``frechet_distance`` needs neither scipy nor that product.
"""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from dimr.evaluation import FeatureStatistics, frechet_distance

mpmath = pytest.importorskip("mpmath")

D = 10


def distance(first: Tensor, second: Tensor) -> float:
    moments = []
    for rows in (first, second):
        statistics = FeatureStatistics(D)
        for part in rows.split(5):
            statistics.update(part)
        moments.append(statistics.moments())
    return frechet_distance(*moments)


def exact_distance(first: Tensor, second: Tensor) -> float:
    """Compute the distance from the rows as they are stored: no covariance is formed, hence no root of a product.

    With rows ``C = (X - mean) / sqrt(N - 1)`` the trace of the root is the sum of the singular values of ``C1 C2^T``.
    """
    with mpmath.workdps(50):
        centred, means = [], []
        for rows in (first, second):
            matrix, count = mpmath.matrix(rows.double().tolist()), len(rows)
            mean = mpmath.ones(1, count) * matrix / count
            centred.append((matrix - mpmath.ones(count, 1) * mean) / mpmath.sqrt(count - 1))
            means.append(mean)
        overlap = mpmath.fsum(mpmath.svd_r(centred[0] * centred[1].T, compute_uv=False))
        spread = mpmath.fsum(value**2 for matrix in centred for value in matrix)
        shift = mpmath.fsum(value**2 for value in means[0] - means[1])
        return float(shift + spread - 2 * overlap)


def rows(count: int, seed: int, rank: int = D) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((count, rank), (rank, D), (D,))]
    return draw[0] @ draw[1] + draw[2]


SETS = {
    "fewer samples than features": (rows(8, 0), rows(6, 1)),
    "two samples": (rows(2, 0), rows(2, 1)),
    "one set has fewer": (rows(16, 0), rows(6, 1)),
    "features that depend on each other": (rows(16, 0, rank=3), rows(14, 1, rank=4)),
    "constant features": (rows(8, 0) * (torch.arange(D) % 2), rows(6, 1) * (torch.arange(D) % 3 > 0)),
    "the same sample again and again": (rows(1, 0).expand(8, D), rows(6, 1)),
    "no direction in common": (rows(6, 0) * (torch.arange(D) < 5), rows(6, 1) * (torch.arange(D) >= 5)),
    "enough samples": (rows(16, 0), rows(17, 1)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", SETS)
def test_distance_is_exact(name, dtype):
    """Check it to rounding. Features rounded to float32 vary by 1e-7 of the rest where they depended on each other;
    the variance of that, 1e-14, is what an eigenvalue's rounding error is, and may be dropped: sqrt(D * 2e-16).
    """
    first, second = (part.to(dtype) for part in SETS[name])
    tolerance = 1e-7 if dtype == torch.float32 else 1e-12
    assert distance(first, second) == pytest.approx(exact_distance(first, second), rel=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", SETS)
def test_equal_sets_are_at_distance_zero(name, dtype):
    for part in SETS[name]:
        part = part.to(dtype)
        assert distance(part, part.flip(0)) <= 1e-12 * part.double().square().sum()


def test_scipy_is_not_asked(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.linalg", None)
    first, second = SETS["fewer samples than features"]
    assert distance(first, second) == pytest.approx(exact_distance(first, second), rel=1e-7)


def test_root_of_a_singular_product_is_complex():
    """The reason for this file: were it real, there would be nothing to avoid."""
    linalg = pytest.importorskip("scipy.linalg")
    numpy = pytest.importorskip("numpy")
    first, second = (numpy.cov(part.numpy(), rowvar=False) for part in SETS["fewer samples than features"])
    assert numpy.iscomplexobj(linalg.sqrtm(first @ second))
