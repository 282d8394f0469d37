"""``dimr encode``: encode pictures to latents, for training."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..sampling.autoencoder import load_autoencoder
from ..utils import require
from . import arguments as kinds
from .arguments import INTERRUPTED, CommandError, pick_device, say

if TYPE_CHECKING:
    from ..data.encoding import Encoder
    from ..data.importing import Importer

PACKAGES = ("numpy", "PIL", "diffusers", "safetensors", "tqdm")
DTYPES = ("float32", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", help="folder (with class folders), .npz or .zip file, tar files (a pattern may be quoted), a Hugging "
        "Face data set on disk, or a folder of parquet files",
    )  # fmt: skip
    parser.add_argument(
        "--autoencoder", type=Path, metavar="DIR", help="folder that diffusers' save_pretrained wrote (for pictures)"
    )
    parser.add_argument(
        "--from", choices=("pictures", "latents"), default="pictures", dest="origin",
        help="latents: convert those that DiMR's or U-ViT's published code, DiT or LightningDiT computed, or .npz with "
        "moments (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--latent-scale", type=kinds.positive_float, metavar="FACTOR",
        help="with --from latents: what to multiply them with for the model (default: what their program does)",
    )  # fmt: skip
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
        if package != "diffusers" or arguments.origin == "pictures":
            require(package, "train", "dimr encode")
    writer = _encoder(arguments) if arguments.origin == "pictures" else _importer(arguments)
    kept = len(writer.index.shards)
    if kept:
        say(f"{kept} of {writer.index.num_shards} shards are there and whole (their checksums are right).")
    return _run(writer, arguments)


def _importer(arguments: argparse.Namespace) -> Importer:
    from ..data.encoding import EncodingSettings
    from ..data.importing import Importer, open_latent_files

    if arguments.autoencoder is not None:
        raise CommandError("--autoencoder: it is for pictures; with --from latents they are encoded already")
    files = open_latent_files(Path(arguments.source))
    settings = EncodingSettings(arguments.shard_size, arguments.dtype, flipped=files.flipped)
    made = Importer(files, arguments.output, settings, arguments.image_size, arguments.latent_scale)
    if not files.flipped:
        say("they have no mirror images beside them: train with data.flip = false")
    return made


def _encoder(arguments: argparse.Namespace) -> Encoder:
    from ..data.encoding import Encoder, EncodingSettings
    from ..data.opening import open_images
    from ..data.spec import DataSpec

    if arguments.autoencoder is None:
        raise CommandError("--autoencoder: give the folder of the autoencoder that encodes the pictures")
    if arguments.latent_scale is not None:
        raise CommandError("--latent-scale: only with --from latents; an autoencoder has its own factor")
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
    return Encoder(dataset, autoencoder, arguments.output, settings)


def _run(writer: Encoder | Importer, arguments: argparse.Namespace) -> int:
    tqdm = require("tqdm", "train", "the progress bar").tqdm
    total = sum(len(writer.samples_of(shard)) for shard in writer.remaining())
    try:
        with tqdm(total=total, desc="encoding", unit="img", dynamic_ncols=True) as bar:
            for count in writer.run(arguments.batch_size, arguments.workers):
                bar.update(count)
    except KeyboardInterrupt:
        index = writer.index
        say(f"stopped; {len(index.shards)} of {index.num_shards} shards are finished. The same command continues.")
        return INTERRUPTED
    shards = writer.index.shards.values()
    shape = "x".join(map(str, writer.index.latent_shape))
    say(f"{sum(entry.samples for entry in shards)} latents of {shape} in {len(shards)} files in {arguments.output}")
    skipped = [name for entry in shards for name, _ in entry.skipped]
    if skipped:
        say(f"left out as unreadable: {len(skipped)}, the first is {skipped[0]}; index.json has all.")
    return 0
