from __future__ import annotations

import pytest
import torch

from dimr.data.digits import LabelledImages, load_digits, split
from dimr.evaluation.digits import DigitClassifier, nearest_distances, within_class_deviation

pytest.importorskip("sklearn")


def test_digits_are_whole():
    digits = load_digits()
    assert digits.images.shape == (1797, 1, 8, 8)
    assert digits.images.dtype == torch.float32
    assert (digits.images.min(), digits.images.max()) == (-1, 1)
    assert digits.labels.unique().tolist() == list(range(10))


def test_enlarged():
    large, small = load_digits(16), load_digits()
    assert large.images.shape == (1797, 1, 16, 16)
    torch.testing.assert_close(large.images.mean(), small.images.mean(), atol=1e-3, rtol=0)
    for size in (0, 4, 12):
        with pytest.raises(ValueError, match=f"size must be a multiple of 8, got {size}"):
            load_digits(size)


def test_parts_are_disjoint_and_balanced():
    digits = load_digits()
    numbered = LabelledImages(torch.arange(len(digits)).float()[:, None, None, None], digits.labels)
    rest, held = split(numbered, 600)
    first, second = (set(part.images.flatten().int().tolist()) for part in (rest, held))
    assert not first & second
    assert first | second == set(range(len(digits)))
    assert abs(len(held) - 600) <= 5
    shares = torch.bincount(held.labels) / torch.bincount(digits.labels)
    assert shares.max() - shares.min() < 0.01
    assert torch.equal(split(numbered, 600)[1].images, held.images)


@pytest.mark.parametrize("held_out", [0, 1797, -3])
def test_split_of_nothing(held_out):
    with pytest.raises(ValueError, match="held_out"):
        split(load_digits(), held_out)


def test_classifier_knows_unseen_real_digits_and_no_noise():
    rest, held = split(load_digits(), 600)
    classifier = DigitClassifier(held)
    real = classifier.recognition(rest)
    assert real.accuracy > 0.95
    assert len(real.per_class) == 10
    assert real.accuracy == pytest.approx(
        sum(a * n for a, n in zip(real.per_class, torch.bincount(rest.labels).tolist(), strict=True)) / len(rest)
    )
    noise = LabelledImages(torch.randn(len(rest), 1, 8, 8).clamp(-1, 1), rest.labels)
    assert classifier.recognition(noise).accuracy < 0.3
    wrong = LabelledImages(rest.images, (rest.labels + 1) % 10)
    assert classifier.recognition(wrong).accuracy < 0.05


def test_memorised_and_collapsed_samples_show():
    rest, held = split(load_digits(), 600)
    assert nearest_distances(rest.images[:50], rest.images).max() == 0
    assert nearest_distances(held.images, rest.images).min() > 0
    copies = LabelledImages(rest.images[:1].expand(20, -1, -1, -1), torch.zeros(20, dtype=torch.int64))
    assert within_class_deviation(copies) == 0
    assert within_class_deviation(held) == pytest.approx(within_class_deviation(rest), rel=0.1)
