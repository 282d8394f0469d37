"""The metrics themselves, against other implementations' numbers on the same features."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dimr.evaluation import EvaluationError, FeatureStatistics, Moments, frechet_distance, precision_and_recall
from dimr.evaluation import metrics as manifold_module
from dimr.evaluation.metrics import ClassifierScore, shuffled_splits

numpy = pytest.importorskip("numpy")

# (samples, reference, features, common offset); RandomState's numbers never change.
CASES = {"regular": (400, 300, 24, 0.0), "singular": (12, 15, 24, 0.0), "offset": (400, 300, 24, 1e3)}
# Of torch-fidelity 0.4.0 (fid_statistics_to_metric, prc_features_to_metric) on `features(case)`, in float64; scipy's
# sqrtm gives the same Frechet distances. Precision and recall are of samples against the reference, k = 3.
PUBLISHED = {
    "regular": (37.98991787752948, 0.985, 140 / 300),
    "singular": (358.42823881338063, 1.0, 6 / 15),
    "offset": (37.98991787802754, 0.985, 140 / 300),
}
PUBLISHED_SCORE = (1.9099599385051849, 0.17133590488450906)  # isc_features_to_metric on `logits()`: mean and deviation


def features(case: str) -> tuple[Tensor, Tensor]:
    """float64 ``[N, D]`` and ``[M, D]``, correlated, of different means and spreads."""
    count, other, dimension, offset = CASES[case]
    random = numpy.random.RandomState(7)
    mixing = random.randn(dimension, dimension)
    samples = random.randn(count, dimension) @ mixing * 0.8 + 0.3
    reference = random.randn(other, dimension) @ (mixing + 0.1 * random.randn(dimension, dimension))
    return torch.from_numpy(samples + offset), torch.from_numpy(reference + offset)


def logits() -> Tensor:
    """float64 ``[103, 7]``, sorted by class as samples often are."""
    random = numpy.random.RandomState(8)
    classes = numpy.arange(103) * 7 // 103
    return torch.from_numpy(random.randn(103, 7) + 2.5 * numpy.eye(7)[classes])


def statistics_of(rows: Tensor, batch: int = 37) -> FeatureStatistics:
    statistics = FeatureStatistics(rows.shape[1])
    for part in rows.split(batch):
        statistics.update(part)
    return statistics


def score_of(values: Tensor, splits: int, batch: int = 20) -> ClassifierScore:
    score = ClassifierScore(splits, values.shape[1])
    for part, split in zip(values.split(batch), shuffled_splits(len(values), splits).split(batch), strict=True):
        score.update(part, split)
    return score


@pytest.mark.parametrize("case", CASES)
def test_frechet_distance_is_torch_fidelitys(case):
    first, second = (statistics_of(rows).moments() for rows in features(case))
    assert frechet_distance(first, second) == pytest.approx(PUBLISHED[case][0], rel=1e-5)


@pytest.mark.parametrize("case", ["regular", "offset"])  # not singular: test_evaluation_singular.py
def test_frechet_distance_is_scipys(case):
    linalg = pytest.importorskip("scipy.linalg")
    (m1, s1), (m2, s2) = ((rows.numpy().mean(0), numpy.cov(rows.numpy(), rowvar=False)) for rows in features(case))
    expected = ((m1 - m2) ** 2).sum() + numpy.trace(s1 + s2 - 2 * linalg.sqrtm(s1 @ s2).real)
    first, second = (statistics_of(rows).moments() for rows in features(case))
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-4)


class AsTheyAre(torch.nn.Module):
    """Features in, features out."""

    num_features = 24

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore`", "ignore:std.*degrees of freedom")
def test_frechet_distance_and_score_are_torchmetrics():
    pytest.importorskip("torchmetrics")
    from torchmetrics.image import fid, inception

    first, second = features("regular")
    other = fid.FrechetInceptionDistance(feature=AsTheyAre(), normalize=True).set_dtype(torch.float64)
    other.update(first, real=False)
    other.update(second, real=True)
    ours = frechet_distance(statistics_of(first).moments(), statistics_of(second).moments())
    assert ours == pytest.approx(other.compute().item(), rel=1e-5)
    whole = inception.InceptionScore(feature=AsTheyAre(), splits=1)
    whole.update(logits())
    assert score_of(logits(), 1).value()[0] == pytest.approx(whole.compute()[0].item(), rel=1e-5)


def test_equal_distributions_are_at_distance_zero_however_singular():
    moments = statistics_of(features("singular")[0]).moments()
    assert torch.linalg.matrix_rank(moments.covariance) < 24
    assert frechet_distance(moments, moments) < 1e-9


def test_known_distance():
    """Distance with commuting covariances: the sum of squared differences of means and of deviations."""
    first = Moments(torch.tensor([1.0, 0, 0]).double(), torch.diag(torch.tensor([4.0, 9, 0]).double()))
    second = Moments(torch.tensor([0.0, 0, 2]).double(), torch.diag(torch.tensor([1.0, 0, 0]).double()))
    assert frechet_distance(first, second) == pytest.approx(1 + 4 + 1 + 9, abs=1e-12)


def test_moments_are_numpys_for_any_batches():
    rows = features("offset")[0]
    for batch in (1, 37, 400):
        mean, covariance = statistics_of(rows, batch).moments()
        torch.testing.assert_close(mean, rows.mean(0))
        torch.testing.assert_close(covariance, torch.from_numpy(numpy.cov(rows.numpy(), rowvar=False)))


def test_batches_of_any_size_add_up():
    rows, values = features("offset")[0], logits()
    uneven = FeatureStatistics(24)
    for part in (rows[:150], rows[:0], rows[150:]):
        uneven.update(part)
    torch.testing.assert_close(uneven.moments(), statistics_of(rows).moments())
    assert score_of(values, 10, batch=60).value() == pytest.approx(score_of(values, 10).value(), rel=1e-12)


class _LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor made in the block."""

    bytes = 0

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        result = operator(*arguments, **(keywords or {}))
        if isinstance(result, Tensor):
            self.bytes = max(self.bytes, result.untyped_storage().nbytes())
        return result


def test_memory_does_not_grow_with_the_images():
    statistics, largest = FeatureStatistics(64), []
    for batches in (1, 10, 30):
        with _LargestTensor() as seen:
            for _ in range(batches):
                statistics.update(torch.randn(16, 64))
        largest.append(seen.bytes)
        assert sorted(vars(statistics)) == ["count", "mean", "scatter"]
    assert largest[0] == largest[1] == largest[2] <= 8 * 64 * 64


def test_inception_score_is_torch_fidelitys():
    assert score_of(logits(), 10).value() == pytest.approx(PUBLISHED_SCORE, rel=1e-9)


def test_splits_are_even():
    assert sorted(torch.bincount(shuffled_splits(103, 10)).tolist()) == [10] * 7 + [11] * 3


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("block", [2**26, 700])
def test_precision_and_recall_are_torch_fidelitys(case, block, monkeypatch):
    monkeypatch.setattr(manifold_module, "ELEMENTS_AT_A_TIME", block)
    samples, reference = features(case)
    assert precision_and_recall(samples, reference) == pytest.approx(PUBLISHED[case][1:], abs=1e-7)
    # float32 is what an evaluation has; one point in 400 may fall on the other side of a radius.
    assert precision_and_recall(samples.float(), reference.float()) == pytest.approx(PUBLISHED[case][1:], abs=0.005)


def test_precision_and_recall_of_collapsed_samples():
    """One reference image over and over: all of it is real, and hardly anything real is covered."""
    reference = torch.randn(50, 5)
    assert precision_and_recall(reference, reference) == (1.0, 1.0)
    precision, recall = precision_and_recall(reference[:1].expand(20, -1), reference)
    assert (precision, recall) == (1.0, pytest.approx(0.02, abs=0.021))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FeatureStatistics(4).update(torch.randn(3, 5)), r"wanted \[B, 4\], got \[3, 5\]"),
        (lambda: FeatureStatistics(2).update(torch.tensor([[1.0, torch.nan]])), "not finite"),
        (lambda: statistics_of(torch.randn(1, 4)).moments(), "at least 2 images, got 1"),
        (lambda: ClassifierScore(1, 3).update(torch.full((1, 3), torch.inf), torch.tensor([0])), "not finite"),
        (lambda: score_of(torch.randn(3, 2), 5).value(), "5 splits need as many images, got 3"),
        (lambda: precision_and_recall(torch.randn(3, 2), torch.randn(9, 2)), "samples: 3 neighbours"),
        (lambda: precision_and_recall(torch.randn(9, 3), torch.randn(9, 2)), r"samples: wanted \[N, 2\]"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(EvaluationError, match=message):
        call()


def test_statistics_of_different_features():
    first, second = (statistics_of(torch.randn(5, dimension)).moments() for dimension in (3, 4))
    with pytest.raises(EvaluationError, match="3 and of 4 features"):
        frechet_distance(first, second)
