"""Evaluations from files to a report, on a small network."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dimr.cli import main
from dimr.evaluation import EvaluationError, EvaluationSettings, evaluate, load_extractor, wrap_module
from dimr.evaluation import inception as inception_module
from tests.support.requirements import needs_demo_extra

numpy = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")
pytestmark = needs_demo_extra


class Tiny(nn.Module):
    """uint8 images to 6 features, 3 logits and a map; random, but always the same."""

    def __init__(self, parts: tuple[str, ...] = ("features", "logits", "spatial")) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = nn.Parameter(torch.randn(9, 3, 2, 2, generator=generator))
        self.dropout = nn.Dropout(0.5)  # only off in evaluation mode
        self.parts = parts

    def forward(self, images: Tensor):
        spatial = self.dropout(torch.conv2d(images.float() / 64, self.weight, stride=2).abs())
        pooled = spatial.mean((2, 3))
        outputs = {"features": pooled[:, :6], "logits": pooled[:, 6:], "spatial": spatial}
        return {key: outputs[key] for key in self.parts} if len(self.parts) > 1 else outputs["features"]


def images(count: int, seed: int = 0, size: int = 6) -> Tensor:
    """uint8 ``[N, 3, S, S]``."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randint(0, 100 + 20 * seed, (count, 3, 1, 1), generator=generator)
    return (low + torch.randint(0, 90, (count, 3, size, size), generator=generator)).clamp(0, 255).to(torch.uint8)


def as_folder(folder: Path, pixels: Tensor) -> Path:
    folder.mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:03}.png")
    return folder


def as_npz(path: Path, pixels: Tensor, **more) -> Path:
    numpy.savez(path, arr_0=pixels.permute(0, 2, 3, 1).numpy(), **more)
    return path


def values(report) -> dict[str, float | None]:
    return {metric.name: metric.value for metric in report.metrics}


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


def test_what_an_extractor_is_known_by():
    first, second = wrap_module(Tiny()), wrap_module(Tiny())
    assert (first.name, first.sha256) == ("Tiny", second.sha256)
    with torch.no_grad():
        second.module.weight[0, 0, 0, 0] += 1
    assert wrap_module(second.module).sha256 != first.sha256


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("ending", ["pt", "pt2"])
def test_network_from_a_file(tmp_path, ending):
    network, path = Tiny().eval(), tmp_path / f"net.{ending}"
    if ending == "pt2":
        torch.export.save(torch.export.export(network, (images(2),), dynamic_shapes=[{0: torch.export.Dim.AUTO}]), path)
    else:
        torch.jit.trace(network, images(2), strict=False).save(path)
    loaded = load_extractor(str(path), resize=6)
    assert loaded.name == "net"
    found = evaluate(images(20), images(25, 1), loaded)
    expected = evaluate(images(20), images(25, 1), network)
    assert [m.value for m in found.metrics] == pytest.approx([m.value for m in expected.metrics], rel=1e-6)


def test_spatial_features_are_in_the_order_of_published_statistics():
    """Seven channels, which vary fastest: ADM's evaluation suite flattens [B, h, w, 7]."""
    network, batch = Tiny().eval(), images(2)
    found, spatial = wrap_module(network)(batch).spatial, network(batch)["spatial"]  # [2, 63], [2, 9, 3, 3]
    assert found.shape == (2, 63)
    for y, x, channel in ((0, 0, 0), (0, 0, 6), (0, 2, 1), (2, 1, 5)):
        assert torch.equal(found[:, (y * 3 + x) * 7 + channel], spatial[:, channel, y, x])


class Returning(nn.Module):
    def __init__(self, output) -> None:
        super().__init__()
        self.output = output

    def forward(self, batch):
        return self.output(batch)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: x.float(), r"'features' of shape \[B, D\] with B = 1, got \[1, 3, 6, 6\]"),
        (lambda x: x.flatten(1), "floating type, got torch.uint8"),
        (lambda x: {"other": x}, "got NoneType"),
        (lambda x: {"features": x.float().mean((2, 3)), "logits": x.float()}, "'logits'"),
        (lambda x: {"features": x.float().mean((2, 3)), "spatial": torch.ones(1, 9, 40, 40)}, "too large"),
        (lambda x: x.float().mean((2, 3)) / (x.float().mean((2, 3)) - 255), "image 4: its pooled .* not finite"),
    ],
)
def test_bad_network(output, message):
    pixels = images(8)
    pixels[4] = 255
    with pytest.raises(EvaluationError, match=message):
        evaluate(pixels, images(8, 1), Returning(output))


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


NETWORK = """
import torch

class Means(torch.nn.Module):
    def forward(self, images):
        return images.float().mean((2, 3))
"""


def test_command(tmp_path, capsys, monkeypatch):
    (tmp_path / "means_for_test.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere", *sys.path])
    as_folder(tmp_path / "samples", images(20))
    as_npz(tmp_path / "reference.npz", images(25, 1))
    command = ["evaluate", "samples", "--reference", "reference.npz", "--device", "cpu"]
    network = ["--features", "means_for_test:Means", "--name", "colour"]
    assert main([*command, *network, "--output", "report.json", "--save-reference", "known.npz"]) == 0
    shown = capsys.readouterr().out
    report = json.loads(Path("report.json").read_text())
    expected = evaluate(Path("samples"), Path("known.npz"), load_extractor("means_for_test:Means"))
    metric = report["metrics"][0]
    assert metric["name"] == "frechet distance on colour"
    assert metric["value"] == pytest.approx(expected.value("frechet distance on Means"))
    assert f"frechet distance on colour          {metric['value']:.4f}" in shown
    assert "FID" not in shown
    assert "Heusel" in metric["paper"]
    assert report["features"]["dtype"] == "float32"
    assert report["settings"]["statistics_dtype"] == "float64"
    assert torch.__version__.startswith(report["environment"]["packages"]["torch"])
    assert main([*command[:3], "known.npz", "--device", "cpu", *network]) == 0
    assert "statistics of 25 images" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "weights of FID's Inception network are not at .*6726825d.pth: get them from https://"),
        (["--inception-weights", "gone.pth"], "not at gone.pth"),
        (["--resize", "9"], "only with --features"),
        (["--features", "torch.nn:Identity", "--inception-weights", "x"], "not with --features"),
        (["--features", "nothing"], "MODULE:CALLABLE, or a .pt2 or TorchScript file, got 'nothing'"),
        (["--features", "torch.nn:Nothing"], "cannot take 'Nothing' from 'torch.nn'"),
        (["--features", "no_such_module:x"], "no_such_module"),
        (["--features", "builtins:dict"], "returned dict, wanted a torch.nn.Module"),
        (["--features", "text.pt"], "text.pt: not a network"),
        (["--features", "torch.nn:Identity", "--save-reference", "a.json"], "ending in .npz"),
        (["--features", "torch.nn:Identity"], "gone: wanted a folder of pictures or an .npz file, found nothing"),
    ],
)
def test_command_says_what_is_wrong(tmp_path, capsys, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "text.pt").write_text("no network")
    assert main(["evaluate", "gone", "--reference", "gone", "--device", "cpu", *more]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("dimr evaluate: error: ")
    assert re.search(message, error), error


@pytest.mark.slow
def test_inception(tmp_path, monkeypatch):
    """With weights of its shape but random: every part works, and the metrics are not called FID."""
    try:
        import torch_fidelity
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torch-fidelity does not load: {error}")
    del torch_fidelity
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    monkeypatch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
    torch.save({}, tmp_path / "none.pth")
    random = FeatureExtractorInceptionV3("random", ["2048"], str(tmp_path / "none.pth"))
    monkeypatch.undo()
    weights = tmp_path / "weights.pth"
    torch.save(random.state_dict(), weights)
    extractor = inception_module.load_inception(weights)
    assert extractor.name == f"inception-v3 with weights {extractor.sha256[:8]}"
    samples = images(4, size=32)
    found = extractor(samples)
    assert [part.shape[1] for part in found] == [2048, 1008, 17 * 17 * 7]
    torch.testing.assert_close(found.pooled, random(samples)[0])
    # The map and the logits without their bias, each taken on another way than the extractor's.
    maps = []
    random.Mixed_6c.register_forward_hook(lambda module, inputs, output: maps.append(output))
    random(samples)
    spatial = random.Mixed_6d.branch1x1(maps[0])[:, :7].permute(0, 2, 3, 1).flatten(1)
    torch.testing.assert_close(found.spatial, spatial)
    torch.testing.assert_close(found.logits, found.pooled @ random.fc.weight.T)
    report = evaluate(samples, images(5, 1, 32), extractor)
    assert report.metrics[0].name.startswith("frechet distance on inception-v3 with weights")
    # The published weights are known by their hash, and only with them it is FID.
    monkeypatch.setattr(inception_module, "PUBLISHED_SHA256", extractor.sha256[:8])
    report = evaluate(samples, images(5, 1, 32), inception_module.load_inception(weights))
    assert [metric.name for metric in report.metrics] == ["FID", "sFID", "Inception Score", "precision", "recall"]
    weights.write_text("no weights")
    with pytest.raises(EvaluationError, match=r"weights.pth is not a whole file of tensors"):
        inception_module.load_inception(weights)
