"""Small encodings: autoencoders and pictures on disk, and runs over them."""

from __future__ import annotations

import json
from pathlib import Path

from dimr.data.encoding import Encoder, EncodingSettings
from dimr.data.opening import open_dataset
from dimr.data.spec import DataSpec
from dimr.sampling.autoencoder import load_autoencoder
from tests.support.autoencoders import SIZE, tiny_autoencoder
from tests.support.pictures import class_folders, pixels

KINDS = ("AutoencoderKL", "AutoencoderTiny")


def saved_autoencoders(tmp_path_factory) -> dict[str, Path]:
    """Save small autoencoders and return their folders by kind."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in folders.items():
        tiny_autoencoder(kind).save_pretrained(folder)
    return folders


def seven_pictures(folder: Path) -> Path:
    """Write seven pictures in three class folders."""
    class_folders(folder / "pictures", pixels(7, SIZE))
    return folder / "pictures"


def opened(path, **more):
    return open_dataset(DataSpec(str(path), image_size=SIZE, **more))


def encoder(autoencoders, pictures, output, kind="AutoencoderKL", max_skipped=0, **settings) -> Encoder:
    settings = EncodingSettings(**{"shard_size": 3, **settings})
    return Encoder(opened(pictures, max_skipped=max_skipped), load_autoencoder(autoencoders[kind]), output, settings)


def encode(*arguments, **more) -> dict:
    """Run an encoding to the end and return its index as written."""
    made = encoder(*arguments, **more)
    for _ in made.run(batch_size=2):
        pass
    return json.loads((made.index.folder / "index.json").read_text())


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
