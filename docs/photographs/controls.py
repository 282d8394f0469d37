"""Reference sets for a Fréchet distance: photographs, blurred photographs, noise; see docs/photographs.md.

python docs/photographs/controls.py TRAIN.npz PER_CLASS FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from dimr.data.sources.npz import NpzSource

BLURRED = 8  # pixels across that blurred pictures are reduced to


def main(path: str, per_class: str, folder: str) -> None:
    """Write ``photographs.npz``, ``blurred.npz`` and ``noise.npz``, each with ``arr_0`` uint8 ``[N, H, W, 3]``."""
    source = NpzSource(path)
    random = np.random.default_rng(0)
    classes = [np.flatnonzero(source.labels == label) for label in np.unique(source.labels)]
    chosen = [i for members in classes for i in random.choice(members, int(per_class), replace=False)]
    pictures = [source.picture(i) for i in chosen]
    photographs = np.stack([np.asarray(picture) for picture in pictures])
    sets = {
        "photographs": photographs,
        "blurred": np.stack([np.asarray(_blurred(picture)) for picture in pictures]),
        "noise": random.integers(0, 256, photographs.shape, np.uint8),
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, images in sets.items():
        np.savez(Path(folder) / f"{name}.npz", images)


def _blurred(picture: Image.Image) -> Image.Image:
    small = picture.resize((BLURRED, BLURRED), Image.Resampling.BOX)
    return small.resize(picture.size, Image.Resampling.BICUBIC)


if __name__ == "__main__":
    main(*sys.argv[1:])
