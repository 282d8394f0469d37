"""Networks that make the features of an evaluation: from modules, files and FID's weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dimr.evaluation import EvaluationError, evaluate, load_extractor, wrap_module
from dimr.evaluation import extractors as inception_module
from tests.support.evaluation import Tiny, images
from tests.support.requirements import needs_demo_extra

pytest.importorskip("numpy")
pytest.importorskip("PIL.Image")
pytestmark = needs_demo_extra


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
