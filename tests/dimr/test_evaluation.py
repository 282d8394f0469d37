"""Evaluations from files to a report, on a small network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dimr.evaluation import EvaluationError, EvaluationSettings, evaluate, wrap_module
from tests.support.evaluation import Tiny, as_folder, as_npz, images, values
from tests.support.requirements import needs_demo_extra

numpy = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")
pytestmark = needs_demo_extra


def test_folder_npz_and_tensor_are_the_same_images(tmp_path):
    samples, reference = images(20), images(25, seed=1)
    expected = values(evaluate(samples, reference, Tiny()))
    stored = evaluate(as_folder(tmp_path / "a", samples), as_npz(tmp_path / "b.npz", reference), Tiny())
    assert values(stored) == expected
    assert list(expected) == [
        f"{kind} on Tiny"
        for kind in ("frechet distance", "spatial frechet distance", "classifier score", "precision", "recall")
    ]
    assert all(value > 0 for value in expected.values())
    assert stored.samples["count"] == 20
    assert stored.reference["image_size"] == "6x6"


def test_pictures_are_turned_upright_or_not(tmp_path):
    """The file is two pixels wide and one high; the orientation in its EXIF data turns it."""
    from dimr.evaluation.images import open_images

    picture = Image.fromarray(numpy.array([[[255, 0, 0], [0, 0, 255]]], numpy.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.png", exif=exif)
    for turned, shape in ((True, [1, 3, 2, 1]), (False, [1, 3, 1, 2])):
        assert list(next(open_images(tmp_path, exif_orientation=turned).batches(1)).shape) == shape


def test_labels_and_classes_do_not_matter(tmp_path, caplog):
    """Nor does what else is in the folder of dimr sample."""
    samples, reference = images(20), images(25, seed=1)
    expected = values(evaluate(samples, reference, Tiny()))
    folder = as_folder(tmp_path / "a", samples)
    (folder / "empty").mkdir()
    (folder / "sampling.json").write_text("{}")
    pixels = samples.permute(0, 2, 3, 1).numpy()
    paths = [folder]
    for i, labels in enumerate((numpy.eye(20) / 2, numpy.array(["cat"] * 20), numpy.zeros((20, 2, 2)), [None] * 20)):
        paths.append(tmp_path / f"{i}.npz")
        numpy.savez(paths[-1], arr_0=pixels, arr_1=labels)
    for path in paths:
        assert values(evaluate(path, reference, Tiny())) == expected
    assert not caplog.records
    (folder / "train").mkdir()
    (folder / "val").mkdir()
    for i, path in enumerate(sorted(folder.glob("*.png"))):
        path.rename(folder / ("train" if i < 10 else "val") / path.name)
    assert values(evaluate(folder, reference, Tiny())) == expected


def test_batch_size_does_not_matter_and_the_network_is_left_as_it_was():
    network = Tiny().train()
    expected = values(evaluate(images(20), images(25, 1), network))
    for size in (1, 7):
        found = values(evaluate(images(20), images(25, 1), network, EvaluationSettings(batch_size=size)))
        assert found == pytest.approx(expected, rel=1e-6)
    assert network.training


def test_features_computed_by_hand():
    samples, reference = images(40), images(30, 1)
    with torch.no_grad():
        first, second = (Tiny().eval()(part)["features"].double().numpy() for part in (samples, reference))
    linalg = pytest.importorskip("scipy.linalg")
    s1, s2 = numpy.cov(first, rowvar=False), numpy.cov(second, rowvar=False)
    expected = ((first.mean(0) - second.mean(0)) ** 2).sum() + numpy.trace(s1 + s2 - 2 * linalg.sqrtm(s1 @ s2).real)
    assert evaluate(samples, reference, Tiny()).value("frechet distance on Tiny") == pytest.approx(expected, rel=1e-5)


def test_saved_statistics_replace_their_images(tmp_path):
    samples, reference, path = images(20), images(25, 1), tmp_path / "statistics.npz"
    expected = evaluate(samples, reference, Tiny(), save_reference=path)
    found = evaluate(samples, path, Tiny())
    kept = {name: value for name, value in values(found).items() if value is not None}
    assert kept == pytest.approx({name: values(expected)[name] for name in kept}, rel=1e-12)
    assert len(kept) == 3
    assert found.reference | {"path": ""} == {
        "path": "", "statistics": "read", "count": 25, "image_size": None, "manifold_images": 0
    }  # fmt: skip
    assert "no images" in found.metrics[-1].reason
    assert sorted(numpy.load(path)) == sorted(
        ["mu", "sigma", "mu_s", "sigma_s", "features", "sha256", "resize", "count"]
    )
    other = Tiny()
    nn.init.ones_(other.weight)
    with pytest.raises(EvaluationError, match="sha256"):
        evaluate(samples, path, other)
    with pytest.raises(EvaluationError, match="resize"):
        evaluate(samples, path, wrap_module(Tiny(), resize=8))


def test_statistics_that_do_not_name_their_features(tmp_path):
    """As in ADM's reference batches: with images beside them, those are used, since the network is another one."""
    samples, reference = images(20), images(25, 1)
    unknown = {"mu": numpy.zeros(6), "sigma": numpy.eye(6)}
    beside = evaluate(samples, as_npz(tmp_path / "a.npz", reference, **unknown), Tiny())
    assert values(beside) == values(evaluate(samples, reference, Tiny()))
    assert "its images are used" in beside.warnings[0]
    numpy.savez(tmp_path / "b.npz", **unknown)
    alone = evaluate(samples, tmp_path / "b.npz", Tiny())
    assert "taken to be of Tiny" in alone.warnings[0]
    assert alone.reference["count"] is None
    assert "unknown number" in alone.table()


def test_only_features():
    report = evaluate(images(20), images(25, 1), Tiny(("features",)))
    reasons = {metric.name: metric.reason for metric in report.metrics if metric.value is None}
    assert reasons == {
        "spatial frechet distance on Tiny": "the network has no spatial features",
        "classifier score on Tiny": "the network has no logits",
    }
    with pytest.raises(KeyError):
        report.value("classifier score on Tiny")


def test_too_few_images_are_warned_of():
    report = evaluate(images(6), images(25, 1), Tiny())
    assert [warning.split(":")[0] for warning in report.warnings] == ["samples"]
    assert "6 images for 6 features" in report.warnings[0]
    few = evaluate(images(3), images(25, 1), Tiny())
    assert "need more images than 3" in few.metrics[-1].reason


def test_precision_and_recall_of_part_of_the_images():
    report = evaluate(images(20), images(25, 1), Tiny(), EvaluationSettings(manifold_images=9))
    assert (report.samples["manifold_images"], report.reference["manifold_images"]) == (9, 9)
    assert report.samples["count"] == 20
    assert report.value("recall on Tiny") * 9 == pytest.approx(round(report.value("recall on Tiny") * 9))


def test_resizing_and_cropping(tmp_path):
    wide = as_folder(tmp_path / "a", torch.zeros(4, 3, 6, 12, dtype=torch.uint8))
    Image.new("L", (20, 30), 255).save(wide / "odd.png")
    with pytest.raises(EvaluationError, match=r"odd.png is 20x30, .*000.png is 12x6: give a size to crop"):
        evaluate(wide, images(9), Tiny())
    seen = []

    class Watching(Tiny):
        def forward(self, batch):
            seen.append((batch.dtype, tuple(batch.shape[1:])))
            return super().forward(batch)

    report = evaluate(wide, images(9), wrap_module(Watching(), resize=10), EvaluationSettings(crop=6))
    assert report.samples["image_size"] == "6x6"
    assert set(seen) == {(torch.uint8, (3, 10, 10))}
    assert "10x10, bicubic with antialiasing" in report.features["resize"]


def test_bad_images(tmp_path):
    good = images(8)
    damaged = as_folder(tmp_path / "damaged", good)
    file = damaged / "003.png"
    file.write_bytes(file.read_bytes()[:60])
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "broken.npz").write_text("hello")
    numpy.savez(tmp_path / "latents.npz", samples=numpy.zeros((2, 4, 8, 8)))
    numpy.savez(tmp_path / "floats.npz", arr_0=numpy.zeros((2, 8, 8, 3)))
    numpy.savez(tmp_path / "half.npz", mu=numpy.zeros(6))
    numpy.savez(tmp_path / "shape.npz", mu=numpy.zeros(6), sigma=numpy.eye(5))
    numpy.savez(tmp_path / "nan.npz", mu=numpy.zeros(6), sigma=numpy.full((6, 6), numpy.nan))
    numpy.savez(tmp_path / "seven.npz", mu=numpy.zeros(7), sigma=numpy.eye(7))
    for samples, message in (
        ("damaged", "003.png: "),
        ("empty", "no images in it"),
        ("gone", "found nothing"),
        ("notes.txt", "found another kind of file"),
        ("broken.npz", "broken.npz"),
        ("latents.npz", "only samples"),
        ("floats.npz", "float64"),
    ):
        with pytest.raises(EvaluationError, match=message):
            evaluate(tmp_path / samples, good, Tiny())
    for reference, message in (
        ("latents.npz", r"wanted images .*arr_0.* or statistics \(mu, sigma\), found samples"),
        ("half.npz", "wanted both mu and sigma, found mu"),
        ("shape.npz", r"\[6\] and \[5, 5\]"),
        ("nan.npz", "not finite"),
        ("seven.npz", "of 7 features, Tiny makes 6"),
        ("broken.npz", "not a whole .npz"),
    ):
        with pytest.raises(EvaluationError, match=message):
            evaluate(good, tmp_path / reference, Tiny())
    with pytest.raises(EvaluationError, match=r"uint8 \[N, 3, H, W\], got torch.float32"):
        evaluate(good.float(), good, Tiny())
    with pytest.raises(EvaluationError, match="splits: wanted at least 1, got 0"):
        EvaluationSettings(splits=0)
