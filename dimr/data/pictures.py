"""Picture files to the pixels that a model is trained on."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..utils import first_line, require
from .errors import SampleError

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm")
MAX_LONGER_SIDE = 2**16  # in pixels, once the shorter side has been scaled
# Errors that Pillow has been seen to raise over damaged files.
PILLOW_ERRORS = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error)


def require_pillow() -> Any:
    return require("PIL.Image", "train", "reading pictures")


def decode_picture(file: bytes | Path, name: str) -> Any:
    """Decode a whole picture to an RGB ``PIL.Image``.

    Raises:
        SampleError: the file is missing or damaged; ``name`` is what the error calls it.
    """
    Image = require_pillow()
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as picture:
            return picture.convert("RGB")
    except (*PILLOW_ERRORS, Image.DecompressionBombError) as error:
        raise SampleError(name, _reason(error)) from error


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
