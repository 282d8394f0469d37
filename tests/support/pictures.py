"""Small pictures, in every kind of container that can be read."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cat")


def pixels(count: int, size: int = 8, seed: int = 0) -> np.ndarray:
    """Make pictures uint8 ``[count, size, size, 3]``, all different, smooth enough for JPEG."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 2, 2, 3), np.uint8)
    return coarse.repeat(size // 2, axis=1).repeat(size // 2, axis=2)


def encoded(picture: np.ndarray, kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind)
    return file.getvalue()


def class_folders(root: Path, pictures: np.ndarray, kind: str = "png") -> list[Path]:
    """Write the pictures to class folders in turn; return the paths in the data set's order."""
    paths = []
    for i, picture in enumerate(pictures):
        path = root / CLASSES[i % len(CLASSES)] / f"{i:03}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture, "jpeg" if kind == "jpg" else kind))
        paths.append(path)
    return sorted(paths)


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def shards(folder: Path, pictures: np.ndarray, per_shard: int) -> list[Path]:
    """Write tar files with the pictures in order, labelled by their number modulo three."""
    paths = []
    for first in range(0, len(pictures), per_shard):
        files = {}
        for i in range(first, min(first + per_shard, len(pictures))):
            files |= {f"{i:03}.png": encoded(pictures[i]), f"{i:03}.cls": str(i % 3).encode()}
        paths.append(write_tar(folder / f"train-{len(paths):03}.tar", files))
    return paths
