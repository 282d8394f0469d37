from __future__ import annotations

import json

import pytest
import torch

from dimr.images import save_image, save_loss_curves, side_by_side, smooth, tile, to_pixels
from dimr.utils import MissingPackageError, replacing, require, write_json


def test_pixels_clamp_and_round():
    values = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0]).reshape(1, 1, 1, 5)
    assert to_pixels(values)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert to_pixels(torch.zeros(2, 3, 4, 5)).shape == (2, 4, 5, 3)
    with pytest.raises(ValueError, match=r"\[2, 4, 8, 8\]"):
        to_pixels(torch.zeros(2, 4, 8, 8))


def test_tiles_lie_row_by_row():
    images = torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, 1, 3, 3)
    canvas = tile(images, columns=2, zoom=2)
    assert canvas.shape == (3 * 6 + 2 * 2, 2 * 6 + 2, 3)
    assert canvas[0, 0].tolist() == [0, 0, 0]
    assert canvas[0, 8].tolist() == [64, 64, 64]
    assert canvas[8, 0].tolist() == [128, 128, 128]
    assert canvas[0, 6].tolist() == [255, 255, 255]  # the gap
    with pytest.raises(ValueError, match="columns"):
        tile(images, columns=0)


def test_pictures_are_written(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    panel = tile(torch.zeros(4, 1, 8, 8), columns=2, zoom=4)
    save_image(tmp_path / "new" / "a.png", side_by_side([("left", panel), ("right", panel)], ["0", "1"]))
    picture = Image.open(tmp_path / "new" / "a.png")
    assert picture.width > 2 * panel.shape[1]
    assert picture.height > panel.shape[0]


def test_loss_curves(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    pytest.importorskip("matplotlib")
    for steps in (1, 100):
        save_loss_curves(tmp_path / "losses.png", torch.rand(steps, 3) + 0.1, [2, 4, 8])
        assert Image.open(tmp_path / "losses.png").width > 100


def test_running_mean():
    values = torch.arange(6.0)[:, None]
    assert smooth(values, 3).flatten().tolist() == [0, 0.5, 1, 2, 3, 4]


def test_no_half_file_is_left(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    with pytest.raises(TypeError, match="str"), replacing(tmp_path / "a.json") as temporary:
        temporary.write_text("half") and temporary.write_text(None)
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_missing_package_names_the_extra():
    with pytest.raises(MissingPackageError, match=r"pictures needs no_such_package.*dimr_kernels\[demo\]"):
        require("no_such_package.inner", "demo", "pictures")
