"""``dimr encode``: encode pictures to latents, for training."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..sampling.autoencoder import load_autoencoder
from ..utils import require
from . import arguments as kinds
from .arguments import INTERRUPTED, pick_device, say

if TYPE_CHECKING:
    from ..data.encoding import Encoder

PACKAGES = ("numpy", "PIL", "diffusers", "safetensors", "tqdm")
DTYPES = ("float32", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", help="folder (with class folders), .npz or .zip file, tar files (a pattern may be quoted), a Hugging "
        "Face data set on disk, or a folder of parquet files",
    )  # fmt: skip
    parser.add_argument(
        "--autoencoder", type=Path, required=True, metavar="DIR", help="folder that diffusers' save_pretrained wrote"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the latents go")
    parser.add_argument("--image-size", type=kinds.positive_int, default=256, help="in pixels (%(default)s)")
    parser.add_argument("--split", help="split of a Hugging Face data set, or sub-folder of a folder")
    parser.add_argument("--image-key", metavar="KEY", help="column or array of pictures, if not one of the usual")
    parser.add_argument("--label-key", metavar="KEY", help="column or array of labels, if not one of the usual")
    parser.add_argument(
        "--exif-orientation", action=argparse.BooleanOptionalAction, default=True,
        help="turn pictures as their EXIF data says (the default; ADM's preprocessing of ImageNet does not)",
    )  # fmt: skip
    parser.add_argument(
        "--background", default="white", metavar="COLOUR",
        help="behind transparent pictures: a name or #rrggbb (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=kinds.positive_int, default=16, help="pictures at a time (%(default)s)")
    parser.add_argument("--shard-size", type=kinds.positive_int, default=2048, help="pictures a file (%(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="of the latents on disk (%(default)s)")
    parser.add_argument(
        "--flip", action=argparse.BooleanOptionalAction, default=True, help="encode mirror images too (the default)"
    )
    parser.add_argument("--workers", type=kinds.count, default=0, help="processes that read pictures (%(default)s)")
    parser.add_argument(
        "--max-skipped", type=kinds.count, default=0,
        help="unreadable files that are left out and listed in the index; one more is an error (%(default)s)",
    )  # fmt: skip
    kinds.add_device(parser)


def run(arguments: argparse.Namespace) -> int:
    for package in PACKAGES:  # before importing the modules that need them
        require(package, "train", "dimr encode")
    from ..data.encoding import Encoder, EncodingSettings
    from ..data.opening import open_images
    from ..data.spec import DataSpec

    spec = DataSpec(
        arguments.source,
        image_size=arguments.image_size,
        max_skipped=arguments.max_skipped,
        **{key: getattr(arguments, key) for key in ("split", "image_key", "label_key")},
        exif_orientation=arguments.exif_orientation,
        background=arguments.background,
    )
    device = pick_device(arguments.device)
    dataset = open_images(spec)
    autoencoder = load_autoencoder(arguments.autoencoder, device)
    settings = EncodingSettings(arguments.shard_size, arguments.dtype, arguments.flip)
    encoder = Encoder(dataset, autoencoder, arguments.output, settings)
    kept = len(encoder.index.shards)
    if kept:
        say(f"{kept} of {encoder.index.num_shards} shards are there and whole (their checksums are right).")
    return _encode(encoder, arguments)


def _encode(encoder: Encoder, arguments: argparse.Namespace) -> int:
    tqdm = require("tqdm", "train", "the progress bar").tqdm
    total = sum(len(encoder.samples_of(shard)) for shard in encoder.remaining())
    try:
        with tqdm(total=total, desc="encoding", unit="img", dynamic_ncols=True) as bar:
            for count in encoder.run(arguments.batch_size, arguments.workers):
                bar.update(count)
    except KeyboardInterrupt:
        index = encoder.index
        say(f"stopped; {len(index.shards)} of {index.num_shards} shards are finished. The same command continues.")
        return INTERRUPTED
    shards = encoder.index.shards.values()
    shape = "x".join(map(str, encoder.index.latent_shape))
    say(f"{sum(entry.samples for entry in shards)} latents of {shape} in {len(shards)} files in {arguments.output}")
    skipped = [name for entry in shards for name, _ in entry.skipped]
    if skipped:
        say(f"left out as unreadable: {len(skipped)}, the first is {skipped[0]}; index.json has all.")
    return 0
