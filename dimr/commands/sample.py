"""``dimr sample``: images from a checkpoint."""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import torch

from ..ablations.choices import described
from ..autoencoder import load_autoencoder
from ..class_names import ClassNameError, class_ids, find_class_names
from ..decoding import decode_latents
from ..guidance import Guidance
from ..inference import optimize_for_inference
from ..network import DiMR
from ..optional import require
from ..sample_files import PICTURES, TENSORS, OneFile, PictureFolder, SampleFiles, SampleFilesError
from ..sample_run import SamplePlan, claim_first, draw_missing, fingerprint, labels_of, missing_batches
from ..sampling import METHODS, NoisePredictor
from ..training.processes import Processes, joined_processes, local_device
from . import arguments as kinds
from .common import CommandError, load_checkpoint, pick_device, say

HELP = "draw images from a checkpoint folder, on one device or under torchrun on many"
SHOWN_CHANNELS = (1, 3)  # anything else is a latent
FIRST_CLASSES, PER_CLASS = 10, 8
WANTED = f"a folder, or a name ending in {', '.join(PICTURES + TENSORS)}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="folder that dimr demo, train or convert wrote")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="PATH",
        help=f"{WANTED}; latents too go to {' and '.join(TENSORS)}",
    )
    parser.add_argument("--overwrite", action="store_true", help="start again though there are samples to go on from")
    parser.add_argument(
        "--classes", action="append", metavar="0,1,cat",
        help="ids or names, or all; may be given again (default: the first ten; with --count, all)",
    )  # fmt: skip
    parser.add_argument(
        "--class-names", type=Path, metavar="FILE",
        help="one name a line (default: the checkpoint's class_names.json; for 1000 classes, torchvision's)",
    )  # fmt: skip
    number = parser.add_mutually_exclusive_group()
    number.add_argument("--per-class", type=kinds.positive_int, help="images of each, class after class (8)")
    number.add_argument("--count", type=kinds.positive_int, help="images in all, of the classes in turn")
    parser.add_argument(
        "--guidance", type=kinds.non_negative_float, help="strength; 0 is none (1, where the model can)"
    )
    parser.add_argument(
        "--guidance-power", type=kinds.positive_float, metavar="P",
        help="let guidance rise along a cosine of (1 - t)^P, up to the given strength",
    )  # fmt: skip
    parser.add_argument("--steps", type=kinds.sampling_steps, default=50, help="model calls per image (%(default)s)")
    parser.add_argument("--method", choices=METHODS, default=METHODS[0], help="sampler (%(default)s)")
    parser.add_argument("--batch-size", type=kinds.positive_int, default=64, help="images at a time (%(default)s)")
    parser.add_argument(
        "--engine", action=argparse.BooleanOptionalAction, default=None,
        help="run the model through dimr.optimize_for_inference: bfloat16 and CUDA graphs on a GPU (the default "
        "there), float32 on a CPU, where it gains little",
    )  # fmt: skip
    parser.add_argument("--seed", type=kinds.seed, default=0, help="decides each image's noise (%(default)s)")
    parser.add_argument("--decoder", type=Path, metavar="DIR", help="diffusers autoencoder, for models of latents")
    parser.add_argument(
        "--decode-batch-size", type=kinds.positive_int, default=4, help="latents decoded at a time (%(default)s)"
    )
    kinds.add_device(parser)


def run(arguments: argparse.Namespace) -> int:
    _check_output(arguments)
    device = pick_device(arguments.device)
    if device.index is None:
        device = local_device(device.type)
    with joined_processes(device) as processes:
        try:
            _run(arguments, device, processes)
        except (SampleFilesError, ClassNameError) as error:
            raise CommandError(str(error)) from error
    return 0


def _check_output(arguments: argparse.Namespace) -> None:
    output: Path = arguments.output
    suffix = output.suffix.lower()
    if suffix and suffix not in PICTURES + TENSORS and not output.is_dir():
        raise CommandError(f"--output: wanted {WANTED}, got {output}")
    if suffix not in TENSORS:
        require("PIL", "demo", "writing pictures")
    if suffix != ".safetensors":
        require("numpy", "demo", f"writing {output}")
    if arguments.method == "dpm-solver-multistep":
        require("diffusers", "demo", f"--method {arguments.method}")


def _run(arguments: argparse.Namespace, device: torch.device, processes: Processes) -> None:
    model = load_checkpoint(arguments.checkpoint, device)
    makes_latents = model.config.in_channels not in SHOWN_CHANNELS
    if makes_latents and arguments.decoder is None and arguments.output.suffix.lower() not in TENSORS:
        raise CommandError(
            f"this model makes latents of {model.config.in_channels} channels: "
            f"give --decoder DIR for pictures, or --output FILE{TENSORS[0]} or FILE{TENSORS[1]} for the latents"
        )
    decoder = None if arguments.decoder is None else _decoder(arguments.decoder, model)
    classes = _classes(arguments, model)
    plan = SamplePlan(_labels(arguments, classes), arguments.seed, arguments.batch_size)
    guidance = _guidance(arguments, model)
    predictor, how = _predictor(arguments.engine, model)
    del model  # with an engine, its memory is free again
    files = _files(arguments, plan, pixels=not makes_latents or decoder is not None)
    settings = _settings(arguments, plan, classes, guidance, f"{device.type}, {how}") if processes.first else {}
    claim_first(files, settings, arguments.overwrite, processes)
    missing = missing_batches(files, plan, processes)
    began = time.perf_counter()
    draw_missing(
        files,
        predictor,
        plan,
        missing,
        processes,
        decode=None if decoder is None else lambda x: decode_latents(decoder, x, arguments.decode_batch_size),
        steps=arguments.steps,
        method=arguments.method,
        guidance=guidance,
    )
    seconds = time.perf_counter() - began
    if not processes.first:
        return
    shape = files.finish(plan.batches, plan.labels)
    kind = "latents" if makes_latents and decoder is None else "images"
    drawn = sum(map(len, missing))
    before = f", {len(plan.labels) - drawn} of them from before" if drawn < len(plan.labels) else ""
    say(f"wrote {len(plan.labels)} {kind} of {'x'.join(map(str, shape))} to {arguments.output}{before}")
    if drawn:
        say(f"{drawn / seconds:.3g} {kind}/s with {how}, first batch included, on {processes.world_size} process(es)")


def _decoder(folder: Path, model: DiMR) -> Any:
    decoder = load_autoencoder(folder, model.device)
    found, wanted = decoder.config.latent_channels, model.config.in_channels
    if found != wanted:
        raise CommandError(f"--decoder: {folder} decodes latents of {found} channels, this model makes {wanted}")
    return decoder


def _labels(arguments: argparse.Namespace, classes: list[int]) -> torch.Tensor:
    per_class = PER_CLASS if arguments.per_class is None else arguments.per_class
    return labels_of(classes, per_class, arguments.count)


def _files(arguments: argparse.Namespace, plan: SamplePlan, pixels: bool) -> SampleFiles:
    output: Path = arguments.output
    if output.suffix.lower() not in PICTURES + TENSORS or output.is_dir():
        return PictureFolder(output)
    columns = math.isqrt(arguments.count - 1) + 1 if arguments.count else arguments.per_class or PER_CLASS
    return OneFile(output, pixels, columns)


def _settings(
    arguments: argparse.Namespace, plan: SamplePlan, classes: list[int], guidance: Guidance | None, computed: str
) -> dict[str, Any]:
    """All that the samples depend on."""
    return {
        "model": fingerprint(arguments.checkpoint),
        "decoder": None if arguments.decoder is None else fingerprint(arguments.decoder),
        "images": len(plan.labels),
        "order": "classes in turn" if arguments.count else "class after class",
        "classes": classes,
        "seed": plan.seed,
        "steps": arguments.steps,
        "method": arguments.method,
        "guidance": None if guidance is None else dataclasses.asdict(guidance),
        "batch_size": plan.batch_size,
        "computed": computed,
    }


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


def _classes(arguments: argparse.Namespace, model: DiMR) -> list[int]:
    count = model.config.num_classes
    if arguments.classes is None:
        return list(range(count if arguments.count else min(FIRST_CLASSES, count)))
    names = find_class_names(count, arguments.checkpoint, arguments.class_names)
    try:
        return class_ids(arguments.classes, count, names)
    except ClassNameError as error:
        raise CommandError(f"--classes: {error}") from error


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
