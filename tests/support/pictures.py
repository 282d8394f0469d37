"""Small pictures, and the same ones in every kind of container."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cat")


def pixels(count: int, size: int = 8, seed: int = 0) -> np.ndarray:
    """uint8 ``[count, size, size, 3]``, smooth enough for a JPEG, no two alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 2, 2, 3), np.uint8)
    return coarse.repeat(size // 2, axis=1).repeat(size // 2, axis=2)


def encoded(picture: np.ndarray, kind: str = "png") -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind)
    return file.getvalue()


def class_folders(root: Path, pictures: np.ndarray, kind: str = "png") -> list[Path]:
    """The pictures in class folders in turn; the paths in the order a data set has them."""
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
    """Tar files with the pictures in order and labels that count up modulo three."""
    paths = []
    for first in range(0, len(pictures), per_shard):
        files = {}
        for i in range(first, min(first + per_shard, len(pictures))):
            files |= {f"{i:03}.png": encoded(pictures[i]), f"{i:03}.cls": str(i % 3).encode()}
        paths.append(write_tar(folder / f"train-{len(paths):03}.tar", files))
    return paths
