"""``dimr sample``: images from a checkpoint."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from ..ablations.choices import described
from ..autoencoder import load_autoencoder
from ..batched_sampling import sample_in_batches
from ..decoding import decode_latents
from ..files import replacing
from ..guidance import Guidance
from ..images import save_image, tile
from ..inference import optimize_for_inference
from ..network import DiMR
from ..optional import require
from ..sampling import METHODS, NoisePredictor
from ..training.processes import joined_processes
from . import arguments as kinds
from .common import CommandError, load_checkpoint, pick_own_device, say

HELP = "draw images from a checkpoint folder, on one device or under torchrun on many"
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
TENSORS = (".safetensors", ".npz")
SHOWN_CHANNELS = (1, 3)  # anything else is a latent
SHOWN_SIZE = 40  # pixels across; smaller images are enlarged in a picture


def add_arguments(parser: argparse.ArgumentParser) -> None:
    endings = ", ".join(PICTURES + TENSORS)
    parser.add_argument("checkpoint", type=Path, help="folder that dimr demo or dimr convert wrote")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=f"ends in one of {endings}")
    parser.add_argument("--classes", type=kinds.class_ids, metavar="0,1,2", help="class ids (default: the first ten)")
    parser.add_argument("--per-class", type=kinds.positive_int, default=8, help="images of each (%(default)s)")
    parser.add_argument(
        "--guidance", type=kinds.non_negative_float, help="strength; 0 is none (1, where the model can)"
    )
    parser.add_argument(
        "--guidance-power", type=kinds.positive_float, metavar="P",
        help="let guidance rise along a cosine of (1 - t)^P, up to the given strength",
    )  # fmt: skip
    parser.add_argument("--steps", type=kinds.positive_int, default=50, help="model calls per image (%(default)s)")
    parser.add_argument("--method", choices=METHODS, default=METHODS[0], help="sampler (%(default)s)")
    parser.add_argument("--batch-size", type=kinds.positive_int, default=64, help="images at a time (%(default)s)")
    parser.add_argument(
        "--engine", action=argparse.BooleanOptionalAction, default=None,
        help="run the model through dimr.optimize_for_inference: bfloat16 and CUDA graphs on a GPU (the default "
        "there), float32 on a CPU, where it gains little",
    )  # fmt: skip
    parser.add_argument("--seed", type=kinds.seed, default=0, help="decides the noise (%(default)s)")
    parser.add_argument("--decoder", type=Path, metavar="DIR", help="diffusers autoencoder, for models of latents")
    parser.add_argument(
        "--decode-batch-size", type=kinds.positive_int, default=4, help="latents decoded at a time (%(default)s)"
    )
    kinds.add_device(parser)


def run(arguments: argparse.Namespace) -> int:
    suffix = arguments.output.suffix.lower()
    if suffix not in PICTURES + TENSORS:
        raise CommandError(f"--output: wanted a name ending in {', '.join(PICTURES + TENSORS)}, got {arguments.output}")
    if suffix in PICTURES:
        require("PIL", "demo", "writing pictures")
    if arguments.method == "dpm-solver-multistep":
        require("diffusers", "demo", f"--method {arguments.method}")
    device = pick_own_device(arguments.device)
    model = load_checkpoint(arguments.checkpoint, device)
    makes_latents = model.config.in_channels not in SHOWN_CHANNELS
    if suffix in PICTURES and makes_latents and arguments.decoder is None:
        raise CommandError(
            f"this model makes latents of {model.config.in_channels} channels: "
            f"give --decoder DIR for pictures, or --output FILE{TENSORS[0]} or FILE{TENSORS[1]} for the latents"
        )
    decoder = None if arguments.decoder is None else load_autoencoder(arguments.decoder, device)
    labels = torch.tensor(_classes(arguments.classes, model)).repeat_interleave(arguments.per_class)
    guidance = _guidance(arguments, model)
    predictor, how = _predictor(arguments.engine, model)
    del model  # with an engine, its memory is free again
    began = time.perf_counter()
    options = {"steps": arguments.steps, "method": arguments.method, "guidance": guidance}
    with joined_processes(device) as processes:
        images = sample_in_batches(predictor, labels, arguments.seed, arguments.batch_size, processes, **options)
    if not processes.first:
        return 0
    rate = len(images) / (time.perf_counter() - began)
    if decoder is not None:
        images = decode_latents(decoder, images, arguments.decode_batch_size)
    _write(arguments.output, images, labels, arguments.per_class)
    kind = "latents" if makes_latents and decoder is None else "images"
    say(f"wrote {len(images)} {kind} of {'x'.join(map(str, images.shape[1:]))} to {arguments.output}")
    say(f"{rate:.3g} {kind if decoder is None else 'latents'}/s with {how}, first batch included")
    return 0


def _predictor(engine: bool | None, model: DiMR) -> tuple[NoisePredictor, str]:
    """The model or an engine made of it, and a description."""
    on_gpu = model.device.type == "cuda"
    if engine and model.config.ablations:
        raise CommandError(f"--engine: it cannot pack an ablation, and this model has {described(model.config)}")
    if not (on_gpu and not model.config.ablations if engine is None else engine):
        return model, "the model as it is, in float32"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    made = optimize_for_inference(model, dtype)
    graph = "CUDA graphs" if made.graph_status == "on" else "no CUDA graphs"
    return made, f"the inference engine in {str(dtype).removeprefix('torch.')}, {graph}"


def _classes(asked: list[int] | None, model: DiMR) -> list[int]:
    count = model.config.num_classes
    if asked is None:
        return list(range(min(10, count)))
    if max(asked) >= count:
        raise CommandError(f"--classes: this model has classes 0 to {count - 1}, got {max(asked)}")
    return asked


def _guidance(arguments: argparse.Namespace, model: DiMR) -> Guidance | None:
    scale, power = arguments.guidance, arguments.guidance_power
    if not model.config.unconditional_class:
        if scale or power:
            raise CommandError("--guidance: this model has no unconditional class, so it cannot be guided")
        return None
    if power is not None:
        return Guidance("power", 1.0 if scale is None else scale, power)
    scale = 1.0 if scale is None else scale
    return Guidance("constant", scale) if scale > 0 else None


def _write(path: Path, images: Tensor, labels: Tensor, columns: int) -> None:
    """A picture with a row to each class, or the tensors ``samples`` and ``labels``."""
    if path.suffix.lower() in PICTURES:
        save_image(path, tile(images, columns, zoom=max(1, SHOWN_SIZE // images.shape[-1])))
        return
    with replacing(path) as temporary:
        if path.suffix.lower() == ".npz":
            numpy = require("numpy", "demo", "writing .npz")
            numpy.savez(temporary, samples=images.numpy(), labels=labels.numpy())
        else:
            safetensors = require("safetensors.torch", "demo", "writing .safetensors")
            safetensors.save_file({"samples": images.contiguous(), "labels": labels}, temporary)
