from __future__ import annotations

import pytest
import torch

pytest.importorskip("PIL")

import numpy as np
from PIL import Image

from dimr.data.errors import SampleError
from dimr.data.pictures import centre_crop, decode_picture, to_model_range
from tests.support.pictures import encoded, pixels


def test_a_picture_of_the_right_size_is_kept_to_the_bit():
    array = pixels(1)[0]
    cropped = centre_crop(Image.fromarray(array), 8)
    assert cropped.dtype == torch.uint8
    assert torch.equal(cropped, torch.from_numpy(array).permute(2, 0, 1))


@pytest.mark.parametrize("wide", [True, False])
def test_the_middle_is_cut_out(wide):
    array = np.zeros((8, 20, 3), np.uint8)
    array[:, 6:14] = pixels(1)[0]
    picture = Image.fromarray(array if wide else array.transpose(1, 0, 2))
    middle = torch.from_numpy(array[:, 6:14]).permute(2, 0, 1)
    assert torch.equal(centre_crop(picture, 8), middle if wide else middle.transpose(1, 2))


def test_sides_twice_too_long_are_halved_by_averaging():
    array = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    means = torch.from_numpy(array).float().permute(2, 0, 1)
    means = torch.nn.functional.avg_pool2d(means, 4)
    assert (centre_crop(Image.fromarray(array), 8) - means).abs().max() < 2  # each of two halvings rounds


def test_what_is_left_is_scaled_bicubically():
    array = pixels(1, 24)[0]
    halved = Image.fromarray(array).resize((12, 12), Image.Resampling.BOX)
    wanted = np.asarray(halved.resize((8, 8), Image.Resampling.BICUBIC))
    assert np.array_equal(centre_crop(Image.fromarray(array), 8).permute(1, 2, 0), wanted)
    assert centre_crop(Image.fromarray(array), 40).shape == (3, 40, 40)  # a smaller picture is enlarged


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_every_picture_becomes_rgb(tmp_path, mode):
    path = tmp_path / f"a.{'jpg' if mode == 'CMYK' else 'png'}"
    Image.fromarray(pixels(1)[0]).convert(mode).save(path)
    assert decode_picture(path, "a").mode == "RGB"


def test_range():
    values = to_model_range(torch.tensor([0, 255], dtype=torch.uint8))
    assert values.tolist() == [-1, 1]
    latents = torch.tensor([0.0, 255.0])
    assert to_model_range(latents) is latents


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_damage_is_named(kind):
    whole = encoded(pixels(1, 64)[0], kind)
    decode_picture(whole, "whole")
    for data in (whole[: len(whole) // 2], b"", b"no picture", whole[:20] + bytes(len(whole) - 20)):
        with pytest.raises(SampleError) as caught:
            decode_picture(data, "the name")
        assert caught.value.skipped.name == "the name"
        assert "\n" not in str(caught.value.skipped)
