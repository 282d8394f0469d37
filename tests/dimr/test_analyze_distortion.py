"""Samples in the order of a classifier's confidence, from every kind of file and classifier."""

from __future__ import annotations

import json
import sys
import types

import pytest
import torch

from dimr.analysis import distortion
from dimr.analysis.distortion import (
    Samples,
    digit_classifier,
    distortion_as_json,
    from_tensors,
    module_classifier,
    picture,
    read_samples,
    score,
    shown,
    split,
    torchvision_classifier,
)
from dimr.cli import main
from dimr.data.digits import load_digits
from dimr.data.errors import DataError
from dimr.evaluation.metrics import EvaluationError


def brightness_logits(images: torch.Tensor) -> torch.Tensor:
    """Two classes: the softmax of class 1 is the sigmoid of four times the mean pixel."""
    mean = images.mean(dim=(1, 2, 3))
    return torch.stack((torch.zeros_like(mean), 4 * mean), dim=1)


def grey(levels: list[float], labels: list[int] | None = None) -> Samples:
    images = torch.tensor(levels, dtype=torch.float32)[:, None, None, None].expand(-1, 1, 8, 8).clone()
    return from_tensors(images, None if labels is None else torch.tensor(labels))


def test_confidence_is_in_the_class_asked_for():
    scores = score(grey([-1, 0, 1, 1], [1, 1, 1, 0]), brightness_logits, batch_size=3)
    high = torch.tensor(4.0).sigmoid().item()
    assert scores.confidence.tolist() == pytest.approx([1 - high, 0.5, high, 1 - high], abs=1e-6)
    assert scores.predicted.tolist() == [0, 0, 1, 1]
    without = score(grey([-1, 0, 1]), brightness_logits)
    assert without.confidence.tolist() == pytest.approx([high, 0.5, high], abs=1e-6)


def test_split_shows_the_worst_and_spreads_the_accepted():
    scores = score(grey([0.1 * i - 0.45 for i in range(10)], [1] * 10), brightness_logits)
    parts = split(scores, threshold=0.5)
    assert parts.low.tolist() == [0, 1, 2, 3, 4]
    assert parts.accepted.tolist() == [5, 6, 7, 8, 9]
    assert shown(parts, 3) == ([0, 1, 2], [5, 7, 9])
    assert shown(parts, 8) == ([0, 1, 2, 3, 4], [5, 6, 7, 8, 9])
    report = distortion_as_json(scores, parts, 2)
    assert (report["low"], report["low_share"], report["accuracy"]) == (5, 0.5, 0.5)
    assert report["per_class"] == [{"class": 1, "samples": 10, "low": 5}]
    assert [entry["index"] for entry in report["shown"]["low"]] == [0, 1]
    assert len(report["confidence"]) == 10


@pytest.mark.parametrize("levels", [[-1.0, -0.9], [0.9, 1.0], [-1.0, 1.0]])
def test_picture_has_both_panels(levels):
    pytest.importorskip("PIL")
    scores = score(grey(levels, [1, 1]), brightness_logits)
    image = picture(scores, split(scores, 0.5), count=2)
    assert image.dtype == torch.uint8
    assert image.shape[2] == 3
    assert image.shape[1] > 4 * 64


def test_bad_answers_and_labels():
    with pytest.raises(DataError, match="label 2 is none of the classifier's 2 classes"):
        score(grey([0.0], [2]), brightness_logits)
    with pytest.raises(DataError, match=r"gave \[1, 1, 8, 8\] for a batch, wanted finite logits"):
        score(grey([0.0], [1]), lambda images: images)
    with pytest.raises(DataError, match="wanted finite logits"):
        score(grey([0.0], [1]), lambda images: brightness_logits(images) / 0)


def test_digits_are_recognised_and_noise_is_not():
    pytest.importorskip("sklearn")
    digits = load_digits(8)
    some = from_tensors(digits.images[:60], digits.labels[:60])
    classifier = digit_classifier(8)
    good = score(some, classifier)
    assert (good.predicted == some.labels).float().mean() > 0.95
    noise = score(from_tensors(torch.rand(60, 1, 8, 8) * 2 - 1, some.labels), classifier)
    assert good.confidence.mean() > noise.confidence.mean() + 0.2


def test_reading(tmp_path):
    numpy = pytest.importorskip("numpy")
    Image = pytest.importorskip("PIL.Image")
    safetensors = pytest.importorskip("safetensors.torch")
    pixels = torch.arange(3 * 8 * 8 * 3, dtype=torch.uint8).view(3, 8, 8, 3)
    images, labels = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1, torch.tensor([2, 0, 1])
    numpy.savez(tmp_path / "a.npz", samples=images.numpy(), labels=labels.numpy())
    numpy.savez(tmp_path / "b.npz", arr_0=pixels.numpy(), arr_1=labels.numpy())
    safetensors.save_file({"samples": images.contiguous(), "labels": labels}, tmp_path / "c.safetensors")
    for name in ("a.npz", "b.npz", "c.safetensors"):
        found = read_samples(tmp_path / name)
        torch.testing.assert_close(found.images(range(3)), images)
        torch.testing.assert_close(found.images([2, 0]), images[[2, 0]])
        assert found.labels.tolist() == [2, 0, 1]
    for i, label in enumerate("xyz"):
        (tmp_path / "d" / label).mkdir(parents=True)
        Image.fromarray(pixels[i].numpy()).save(tmp_path / "d" / label / "0.png")
    found = read_samples(tmp_path / "d")
    torch.testing.assert_close(found.images(range(3)), images)
    assert found.labels.tolist() == [0, 1, 2]


def test_unreadable_samples(tmp_path):
    numpy = pytest.importorskip("numpy")
    pytest.importorskip("safetensors")
    (tmp_path / "a.npz").write_bytes(b"PK nothing")
    (tmp_path / "a.safetensors").write_bytes(b"12345678")
    (tmp_path / "a.txt").write_text("x")
    numpy.savez(tmp_path / "latents.npz", samples=numpy.zeros((2, 4, 8, 8), numpy.float32))
    numpy.savez(tmp_path / "labels.npz", samples=numpy.zeros((2, 3, 8, 8), numpy.float32), labels=numpy.zeros(3, int))
    numpy.savez(tmp_path / "nan.npz", samples=numpy.full((2, 3, 8, 8), numpy.nan, numpy.float32))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "nan.npz").read_bytes()[:500])
    for name, message in {
        "a.npz": "a.npz",
        "cut.npz": "cut.npz is not a whole .npz file",
        "a.safetensors": "cannot be read",
        "a.txt": "wanted a folder, .npz or .safetensors",
        "latents.npz": r"wanted images \[N, 1 or 3, H, W\], found \[1, 4, 8, 8\]",
        "labels.npz": "a class of 0 or more for each of 2 images",
        "nan.npz": "no finite numbers",
    }.items():
        with pytest.raises(DataError, match=message):
            read_samples(tmp_path / name).images([0])
    Image = pytest.importorskip("PIL.Image")
    (tmp_path / "sizes").mkdir()
    for i in (8, 9):
        Image.new("RGB", (i, 8)).save(tmp_path / "sizes" / f"{i}.png")
    with pytest.raises(DataError, match="its pictures differ in size"):
        read_samples(tmp_path / "sizes").images([0, 1])
    with pytest.raises(FileNotFoundError, match="no samples at"):
        read_samples(tmp_path / "none")


class Brightness(torch.nn.Module):
    """As :func:`brightness_logits`, of uint8 images."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.float().mean(dim=(1, 2, 3)) / 127.5 - 1
        return torch.stack((torch.zeros_like(mean), 4 * mean), dim=1)


def test_modules_by_name_and_file(monkeypatch, tmp_path):
    module = types.ModuleType("a_classifier")
    module.build = Brightness
    monkeypatch.setitem(sys.modules, "a_classifier", module)
    images = grey([-1, 0, 1]).images(range(3))
    wanted = brightness_logits(images)
    torch.testing.assert_close(
        module_classifier("a_classifier:build", torch.device("cpu"))(images), wanted, atol=0.02, rtol=0
    )
    example = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    program = torch.export.export(Brightness(), (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "exported.pt2")
    exported = module_classifier(str(tmp_path / "exported.pt2"), torch.device("cpu"))
    torch.testing.assert_close(exported(images), wanted, atol=0.02, rtol=0)


def test_torchvision_by_name(monkeypatch, tmp_path):
    seen = []

    class Net(torch.nn.Linear):
        def forward(self, x):
            seen.append(x)
            return super().forward(x.mean(dim=(2, 3)))

    net = Net(3, 5)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    models = types.SimpleNamespace(get_model=lambda name, weights: Net(3, 5))
    monkeypatch.setattr(distortion, "require", lambda *names: models)
    classifier = torchvision_classifier("net", tmp_path / "w.pth", torch.device("cpu"))
    levels = grey([-1, 1]).images(range(2))
    with torch.no_grad():
        logits = classifier(levels)
    normal = torch.stack([(torch.tensor([v, v, v]) - torch.tensor((0.485, 0.456, 0.406))) for v in (0.0, 1.0)])
    normal = normal / torch.tensor((0.229, 0.224, 0.225))
    assert seen[0].shape == (2, 3, 224, 224)
    torch.testing.assert_close(seen[0].mean(dim=(2, 3)), normal, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits, net(seen[0]), atol=1e-5, rtol=1e-5)
    torch.save({"weight": torch.zeros(5, 3)}, tmp_path / "half.pth")
    with pytest.raises(EvaluationError, match=r"classifier net, weights .*half\.pth"):
        torchvision_classifier("net", tmp_path / "half.pth", torch.device("cpu"))


def test_command(tmp_path, capsys):
    numpy = pytest.importorskip("numpy")
    pytest.importorskip("PIL")
    pytest.importorskip("sklearn")
    pytest.importorskip("tqdm")
    digits = load_digits(8)
    images, labels = digits.images[:40].clone(), digits.labels[:40]
    images[:3] = -1  # empty
    numpy.savez(tmp_path / "s.npz", samples=images.numpy(), labels=labels.numpy())
    out = tmp_path / "out"
    command = ["analyze", "distortion", str(tmp_path / "s.npz"), "--output", str(out), "--count", "4", "--classifier"]
    assert main([*command, "digits"]) == 0
    assert "below a confidence of 0.5" in capsys.readouterr().out
    report = json.loads((out / "distortion.json").read_text())
    assert {0, 1, 2} & {entry["index"] for entry in report["shown"]["low"]}
    assert report["samples"] == 40
    assert report["accuracy"] > 0.9
    assert sorted(path.name for path in out.iterdir()) == ["distortion.json", "distortion.png"]
    for name, message in {
        "resnet": "a torchvision model's name with --weights, MODULE:CALLABLE or a file; got 'resnet'",
        "no_such_module:x": "cannot take 'x' from 'no_such_module'",
    }.items():
        assert main([*command, name]) == 2
        assert message in capsys.readouterr().err
    numpy.savez(tmp_path / "s.npz", samples=numpy.zeros((2, 3, 8, 8), numpy.float32))
    assert main([*command, "digits"]) == 2
    assert "wanted images of 1xSxS" in capsys.readouterr().err
