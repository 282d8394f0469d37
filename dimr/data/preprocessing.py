"""A picture file to the pixels a model is trained on."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..messages import first_line
from ..optional import require
from .errors import SampleError

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm")
LONGEST = 2**16  # pixels of a picture's longer side when the shorter one has been scaled
# What Pillow is seen to raise on damaged files.
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error)


def require_pillow() -> Any:
    return require("PIL.Image", "train", "reading pictures")


def decode_picture(file: bytes | Path, name: str) -> Any:
    """A whole, decoded RGB ``PIL.Image``.

    Raises:
        SampleError: the file is missing or damaged; ``name`` is what the error calls it.
    """
    Image = require_pillow()
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as picture:
            return picture.convert("RGB")
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise SampleError(name, _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = first_line(error)
    return "not a picture that Pillow can read" if text.startswith("cannot identify") else text


def as_tensor(picture: Any) -> Tensor:
    """Of an RGB picture: uint8 ``[3, H, W]``."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def centre_crop(picture: Any, size: int, name: str = "picture") -> Tensor:
    """The largest square in the middle, scaled to ``size``: uint8 ``[3, size, size]``.

    As ADM does it (Dhariwal and Nichol, 2021), and after it U-ViT and DiMR: the shorter side is halved by averaging
    while it is at least twice too long, then made ``size`` bicubically, and the middle is cut out.

    Raises:
        SampleError: so long a picture that this would take gigabytes for what is cut off.
    """
    Image = require_pillow()
    shorter, longer = sorted(picture.size)
    if longer * size > LONGEST * shorter:
        raise SampleError(name, f"{picture.width}x{picture.height} pixels are too long a picture for a square")
    while min(picture.size) >= 2 * size:
        picture = picture.resize(tuple(side // 2 for side in picture.size), Image.Resampling.BOX)
    scale = size / min(picture.size)
    if scale != 1:
        picture = picture.resize(tuple(round(side * scale) for side in picture.size), Image.Resampling.BICUBIC)
    top, left = (picture.height - size) // 2, (picture.width - size) // 2
    return as_tensor(picture)[:, top : top + size, left : left + size].contiguous()


def to_model_range(pixels: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]; other tensors, which are latents, as they are."""
    return pixels.float() / 127.5 - 1 if pixels.dtype == torch.uint8 else pixels
