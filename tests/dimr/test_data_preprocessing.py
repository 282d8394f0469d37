from __future__ import annotations

import io
import struct
import zlib

import pytest
import torch

pytest.importorskip("PIL")

import numpy as np
from PIL import Image

from dimr.data.errors import DataError, SampleError
from dimr.data.opening import open_dataset
from dimr.data.pictures import EXIF_ORIENTATION, Decoding, centre_crop, decode_picture, to_model_range
from dimr.data.spec import DataSpec
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


def saved(picture, kind, **more) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **more)
    return file.getvalue()


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.array([[0, 257, 32896, 65535]], np.uint16), "png"),
        (np.array([[0, 257, 32896, 65535]], np.uint16), "tiff"),
        (np.array([[0, 257, 32896, 65535]], np.uint16), "ppm"),
        (np.array([[0, 257, 32896, 65535]], np.int32), "tiff"),
        (np.array([[0, 1, 128, 255]], np.float32) / 255, "tiff"),
        (np.array([[0, 1, 128, 255]], np.float32), "tiff"),
        (np.array([[0, 1, 128, 255]], np.uint8), "png"),
    ],
)
def test_greyscale_of_more_bits_is_scaled(values, kind):
    if kind == "ppm":  # Pillow before 11 reads it and does not write it
        picture = b"P5 4 1 65535\n" + values.astype(">u2").tobytes()
    else:
        picture = saved(Image.fromarray(values), kind)
    decoded = np.asarray(decode_picture(picture, "a"))
    assert decoded.tolist() == [[[v] * 3 for v in (0, 1, 128, 255)]]


@pytest.mark.parametrize("values", [[[-1.0, 0.5]], [[0.0, 300.0]], [[float("nan"), 0.0]]])
def test_grey_values_of_no_known_range(values):
    with pytest.raises(SampleError, match=r"grey values are from .* to .*; wanted 0 to 1, or 0 to 255"):
        decode_picture(saved(Image.fromarray(np.array(values, np.float32)), "tiff"), "a")


@pytest.mark.parametrize("bits", [8, 16])
def test_white_may_be_zero_in_tiff_files(bits):
    values = np.array([[0, 51, 255]], f"<u{bits // 8}") * (1 if bits == 8 else 257)
    tags = {256: 3, 257: 1, 258: bits, 259: 1, 262: 0, 273: 8, 277: 1, 278: 1, 279: values.nbytes}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = struct.pack("<2sHI", b"II", 42, 8 + values.nbytes)
    data = start + values.tobytes() + struct.pack("<H", len(tags)) + directory + bytes(4)
    assert np.asarray(decode_picture(data, "a"))[0, :, 0].tolist() == [255, 204, 0]


@pytest.mark.parametrize("kind", ["png", "tiff"])  # Pillow turns a TIFF file itself while it reads the pixels
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation, kind):
    ops = pytest.importorskip("PIL.ImageOps")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8))
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    data = saved(picture, kind, exif=exif)
    wanted = ops.exif_transpose(Image.open(io.BytesIO(saved(picture, "png", exif=exif)))).convert("RGB")
    assert np.array_equal(decode_picture(data, "a"), wanted)
    assert np.array_equal(decode_picture(data, "a", Decoding(exif_orientation=False)), picture)
    assert wanted.size == ((6, 4) if orientation < 5 else (4, 6))


def png_with_transparent_colour(depth, channels, transparent, other) -> bytes:
    """Write a row of two pixels, whose samples are all equal, the first of the transparent colour (tRNS)."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    bits = "".join(format(value, f"0{depth}b") * channels for value in (transparent, other))
    size = -(-len(bits) // 8)
    row = int(bits.ljust(8 * size, "0"), 2).to_bytes(size, "big")
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, depth, 2 if channels == 3 else 0, 0, 0, 0))
    colour = chunk(b"tRNS", struct.pack(f">{channels}H", *[transparent] * channels))
    return b"\x89PNG\r\n\x1a\n" + header + colour + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("depth", "channels", "transparent", "other", "grey"),
    [
        (1, 1, 1, 0, 0), (2, 1, 1, 2, 170), (4, 1, 5, 6, 102), (8, 1, 5, 6, 6), (16, 1, 1000, 1001, 4),
        (8, 3, 5, 6, 6), (16, 3, 1000, 40000, 156),
    ],
)  # fmt: skip
def test_transparent_colours_of_any_depth(depth, channels, transparent, other, grey):
    """Pillow scales the samples of 2, 4 and 16 bits, and not the transparent colour."""
    file = png_with_transparent_colour(depth, channels, transparent, other)
    decoded = np.asarray(decode_picture(file, "a", Decoding(background="#0a0b0c")))
    assert decoded.tolist() == [[[10, 11, 12], [grey] * 3]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_shows_the_background(tmp_path, mode):
    """The hidden colour is grey, like the other half of the picture."""
    array = np.full((4, 4, 4), (100, 100, 100, 255), np.uint8)
    array[:2, :, 3] = 0
    if mode == "P":
        picture = Image.new("P", (4, 4), 0)
        picture.putpalette([100, 100, 100] * 2)
        picture.paste(1, (0, 2, 4, 4))
        data = saved(picture, "png", transparency=0)
    else:
        data = saved(Image.fromarray(array).convert(mode), "png")
    assert np.asarray(decode_picture(data, "a"))[:, 0].tolist() == [[255] * 3] * 2 + [[100] * 3] * 2
    (tmp_path / "a.png").write_bytes(data)
    dataset = open_dataset(DataSpec(str(tmp_path), image_size=4, background="#0a0b0c"))
    assert dataset.load(0)[:, :, 0].T.tolist() == [[10, 11, 12]] * 2 + [[100] * 3] * 2
    with pytest.raises(DataError, match="background must be a colour's name or #rrggbb, got 'whit'"):
        open_dataset(DataSpec(str(tmp_path), image_size=4, background="whit"))


def test_orientation_can_be_left_alone(tmp_path):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 3
    picture = pixels(1)[0]
    (tmp_path / "a.png").write_bytes(saved(Image.fromarray(picture), "png", exif=exif))
    for turned in (True, False):
        loaded = open_dataset(DataSpec(str(tmp_path), image_size=8, exif_orientation=turned)).load(0)
        assert np.array_equal(loaded.permute(1, 2, 0), picture[::-1, ::-1] if turned else picture)


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
