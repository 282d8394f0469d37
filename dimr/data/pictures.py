"""Picture files to the pixels that a model is trained on."""

from __future__ import annotations

import dataclasses
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..utils import first_line, require
from .errors import DataError, SampleError

PICTURES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".tga", ".jp2", ".j2k",
    ".pbm", ".pgm", ".ppm", ".pnm",
)  # fmt: skip
EXIF_ORIENTATION = 0x0112  # the tag
TIFF_PHOTOMETRIC, WHITE_IS_ZERO = 0x0106, 0  # a tag and a value of it
# Pillow's name of a PNG's samples -> its transparent colour as Pillow scales samples, but not that colour (13.0).
SCALED_COLOURS: dict[str, Callable[[Any], Any]] = {
    "L;2": lambda grey: grey * 85,
    "L;4": lambda grey: grey * 17,
    "RGB;16B": lambda colour: tuple(sample >> 8 for sample in colour),
}
MAX_LONGER_SIDE = 2**16  # in pixels, once the shorter side has been scaled
# Errors that Pillow has been seen to raise over damaged files.
PILLOW_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error)


def require_pillow() -> Any:
    return require("PIL.Image", "train", "reading pictures")


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Options of decoding.

    Attributes:
        exif_orientation: turn pictures as their EXIF data says. ADM's preprocessing of ImageNet does not.
        background: the colour behind transparent pictures, by name or as ``#rrggbb``.

    Raises:
        DataError: ``background`` is no colour.
    """

    exif_orientation: bool = True
    background: str = "white"

    def __post_init__(self) -> None:
        try:
            require("PIL.ImageColor", "train", "reading pictures").getrgb(self.background)
        except ValueError:
            wanted = "a colour's name or #rrggbb"
            raise DataError(f"background must be {wanted}, got {self.background!r}") from None


def decode_picture(file: bytes | Path, name: str, decoding: Decoding | None = None) -> Any:
    """Decode a whole picture, of animations and multi-page files the first one, to an RGB ``PIL.Image``.

    Raises:
        SampleError: the file is missing or damaged; ``name`` is what the error calls it.
    """
    Image = require_pillow()
    decoding = decoding or Decoding()
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as picture:
            _scale_transparent_colour(picture)
            turned = _oriented(picture, decoding.exif_orientation)
            if _is_negative(picture):
                turned = Image.fromarray(65535 - np.asarray(turned))
            return _as_rgb(turned, decoding.background)
    except (*PILLOW_ERRORS, Image.DecompressionBombError) as error:
        raise SampleError(name, _reason(error)) from error


def _scale_transparent_colour(picture: Any) -> None:
    samples = picture.tile[0][3] if picture.format == "PNG" and picture.tile else None
    if samples in SCALED_COLOURS and "transparency" in picture.info:
        picture.info["transparency"] = SCALED_COLOURS[samples](picture.info["transparency"])


def _is_negative(picture: Any) -> bool:
    """Tell whether 0 is white; Pillow inverts such TIFF files of 8 bits and fewer, but not of 16."""
    tags = getattr(picture, "tag_v2", {})
    return picture.mode == "I;16" and tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO


def _oriented(picture: Any, upright: bool) -> Any:
    """Turn or mirror the picture as its EXIF orientation says, or else give it as it is in the file."""
    Transpose = require_pillow().Transpose
    methods = {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
    }  # fmt: skip
    stated = _orientation(picture)
    picture.load()
    left = _orientation(picture)  # none of a TIFF file, which Pillow has turned by now
    if upright:
        return picture.transpose(methods[left]) if left in methods else picture
    back = {**methods, 6: Transpose.ROTATE_90, 8: Transpose.ROTATE_270}
    return picture.transpose(back[stated]) if stated in back and left != stated else picture


def _orientation(picture: Any) -> Any:
    try:
        return picture.getexif().get(EXIF_ORIENTATION)
    except Exception:  # Pillow raises many types over damaged EXIF data, which does not make the pixels unreadable
        return None


def _as_rgb(picture: Any, background: str) -> Any:
    """Convert to RGB. Pillow's own conversion clips values above 255 and shows the colours of transparent pixels."""
    Image = require_pillow()
    if picture.mode == "F" or picture.mode.startswith("I"):
        values, transparent = np.asarray(picture), picture.info.get("transparency")
        picture = Image.fromarray(_as_bytes(values)).convert("RGB")
        if transparent is not None:
            picture.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    if picture.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in picture.info:
        behind = Image.new("RGBA", picture.size, background)
        return Image.alpha_composite(behind, picture.convert("RGBA")).convert("RGB")
    return picture.convert("RGB")


def _as_bytes(grey: np.ndarray) -> np.ndarray:
    """Scale greyscale values to uint8: integers from 16 bits, floats from [0, 1] or else from [0, 255]."""
    low, high = grey.min(), grey.max()
    if grey.dtype.kind in "iu":
        limit, wanted = 65535, "0 to 65535"
    else:
        limit, wanted = (1 if high <= 1 else 255), "0 to 1, or 0 to 255"
    if not (low >= 0 and high <= limit):  # NaN is neither
        raise ValueError(f"its {grey.dtype} grey values are from {low:g} to {high:g}; wanted {wanted}")
    return (grey * (255 / limit) + 0.5).astype(np.uint8)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = first_line(error)
    return "not a picture that Pillow can read" if text.startswith("cannot identify") else text


def as_tensor(picture: Any) -> Tensor:
    """Copy an RGB picture to a uint8 tensor ``[3, H, W]``."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def centre_crop(picture: Any, size: int, name: str = "picture") -> Tensor:
    """Cut the largest square out of the middle and scale it to ``size``: uint8 ``[3, size, size]``.

    This is ADM's preprocessing (Dhariwal and Nichol, 2021), which U-ViT and DiMR use too: the shorter side is halved
    by averaging while it is at least twice too long, then resized to ``size`` bicubically, and the middle is cut out.

    Raises:
        SampleError: the picture is so elongated that scaling it would take gigabytes.
    """
    Image = require_pillow()
    shorter, longer = sorted(picture.size)
    if longer * size > MAX_LONGER_SIDE * shorter:
        raise SampleError(name, f"{picture.width}x{picture.height} pixels are too elongated to cut a square out of")
    while min(picture.size) >= 2 * size:
        picture = picture.resize(tuple(side // 2 for side in picture.size), Image.Resampling.BOX)
    scale = size / min(picture.size)
    if scale != 1:
        picture = picture.resize(tuple(round(side * scale) for side in picture.size), Image.Resampling.BICUBIC)
    top, left = (picture.height - size) // 2, (picture.width - size) // 2
    return as_tensor(picture)[:, top : top + size, left : left + size].contiguous()


def to_model_range(samples: Tensor) -> Tensor:
    """Map uint8 pixels to float32 in [-1, 1]; leave other tensors, which are latents, unchanged."""
    return samples.float() / 127.5 - 1 if samples.dtype == torch.uint8 else samples
