"""``dimr evaluate``."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from dimr.cli import main
from dimr.evaluation import evaluate, load_extractor
from tests.support.evaluation import as_folder, as_npz, images
from tests.support.requirements import needs_demo_extra

pytest.importorskip("numpy")
pytest.importorskip("PIL.Image")
pytestmark = needs_demo_extra

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
    assert report["settings"]["exif_orientation"] is True
    assert main([*command, *network, "--output", "report.json", "--no-exif-orientation"]) == 0
    assert json.loads(Path("report.json").read_text())["settings"]["exif_orientation"] is False
    capsys.readouterr()
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
