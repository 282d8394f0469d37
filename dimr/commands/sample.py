"""``dimr sample``: draw images from a checkpoint."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import mimetypes
import time
from pathlib import Path
from typing import Any

import torch

from ..diffusion.sample import METHODS, Guidance, NoisePredictor
from ..distributed import Processes, joined_processes
from ..images import SHOWN_CHANNELS
from ..inference import optimize_for_inference
from ..model.network import DiMR
from ..sampling.autoencoder import decode_latents, load_autoencoder
from ..sampling.class_names import ClassNameError, class_ids, find_class_names, find_trained_classes, ranges
from ..sampling.files import PICTURES, TENSORS, OneFile, PictureFolder, SampleFiles, SampleFilesError
from ..sampling.plan import SamplePlan, claim_first, draw_missing, fingerprint, labels_of, missing_batches
from ..utils import require
from . import arguments as kinds
from .arguments import CommandError, load_checkpoint, pick_own_device, say

logger = logging.getLogger(__name__)

DEFAULT_CLASSES, DEFAULT_PER_CLASS = 10, 8
OTHER_FILES = (".npy", ".pt", ".pth", ".ckpt", ".pkl", ".tar", ".tgz", ".gz", ".parquet")
OUTPUT_KINDS = f"a folder, or a name ending in {', '.join(PICTURES + TENSORS)}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="folder of a run, or that dimr demo or convert wrote")
    kinds.add_weights(parser)
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="PATH",
        help=f"{OUTPUT_KINDS}; latents too go to {' and '.join(TENSORS)}",
    )
    parser.add_argument("--overwrite", action="store_true", help="start again though there are samples already")
    parser.add_argument(
        "--classes", action="append", metavar="0,1,cat",
        help="ids or names; all that were trained; none, for unconditional samples; may be given again "
        "(default: the first ten; with --count, all)",
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
    device = pick_own_device(arguments.device)
    with joined_processes(device) as processes:
        try:
            _run(arguments, device, processes)
        except (SampleFilesError, ClassNameError) as error:
            raise CommandError(str(error)) from error
    return 0


def _check_output(arguments: argparse.Namespace) -> None:
    output: Path = arguments.output
    suffix = output.suffix.lower()
    if suffix not in PICTURES + TENSORS and not output.is_dir() and _is_file_suffix(suffix):
        raise CommandError(f"--output: wanted {OUTPUT_KINDS}, got {output}")
    if suffix not in TENSORS:
        require("PIL", "demo", "writing pictures")
    if suffix != ".safetensors":
        require("numpy", "demo", f"writing {output}")
    if arguments.method == "dpm-solver-multistep":
        require("diffusers", "demo", f"--method {arguments.method}")


def _is_file_suffix(suffix: str) -> bool:
    """Tell the suffix of a kind of file from the rest of a folder's name, as in ``run-cfg-1.5-seed-0``."""
    return suffix in OTHER_FILES or suffix in mimetypes.MimeTypes().types_map[True]  # Python's own, not the system's


def _run(arguments: argparse.Namespace, device: torch.device, processes: Processes) -> None:
    checkpoint = load_checkpoint(arguments.checkpoint, device, arguments.weights, arguments.step, processes.is_main)
    model, folder, identity = checkpoint.model, checkpoint.folder, checkpoint.identity
    del checkpoint
    decoder = _decoder(arguments, model)
    pixels = model.config.in_channels in SHOWN_CHANNELS or decoder is not None
    classes = _classes(arguments, model, folder)
    plan = SamplePlan(_labels(arguments, classes), arguments.seed, arguments.batch_size)
    unconditional = set(classes) == {model.config.num_classes}
    guidance = None if unconditional else _guidance(arguments, model)
    predictor, how = _predictor(arguments.engine, model)
    del model  # with an engine, its memory is free again
    files = _files(arguments, plan, pixels)
    settings = {}
    if processes.is_main:
        settings = {"model": identity, **_settings(arguments, plan, classes, guidance, f"{device.type}, {how}")}
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
    if processes.is_main:
        shape = files.finish(plan.batches, plan.labels)
        kind, drawn, wanted = "images" if pixels else "latents", sum(map(len, missing)), len(plan.labels)
        before = f", {wanted - drawn} of them from before" if drawn < wanted else ""
        say(f"wrote {wanted} {kind} of {'x'.join(map(str, shape))} to {arguments.output}{before}")
        if drawn:
            rate = f"{drawn / seconds:.3g} {kind}/s with {how}"
            say(f"{rate}, first batch included, on {processes.world_size} process(es)")


def _decoder(arguments: argparse.Namespace, model: DiMR) -> Any:
    """Load the autoencoder; None if the samples are kept as the model makes them."""
    channels = model.config.in_channels
    if arguments.decoder is None:
        if channels not in SHOWN_CHANNELS and arguments.output.suffix.lower() not in TENSORS:
            raise CommandError(
                f"this model makes latents of {channels} channels: "
                f"give --decoder DIR for pictures, or --output FILE{TENSORS[0]} or FILE{TENSORS[1]} for the latents"
            )
        return None
    decoder = load_autoencoder(arguments.decoder, model.device)
    found = decoder.config.latent_channels
    if found != channels:
        raise CommandError(
            f"--decoder: {arguments.decoder} decodes latents of {found} channels, this model makes {channels}"
        )
    return decoder


def _labels(arguments: argparse.Namespace, classes: list[int]) -> torch.Tensor:
    return labels_of(classes, arguments.per_class or DEFAULT_PER_CLASS, arguments.count)


def _files(arguments: argparse.Namespace, plan: SamplePlan, pixels: bool) -> SampleFiles:
    output: Path = arguments.output
    if output.suffix.lower() not in PICTURES + TENSORS or output.is_dir():
        return PictureFolder(output)
    columns = math.isqrt(arguments.count - 1) + 1 if arguments.count else arguments.per_class or DEFAULT_PER_CLASS
    files = OneFile(output, pixels, columns)
    if files.finished and not arguments.overwrite:
        raise CommandError(f"--output: {output} is there already: give another name, or --overwrite to draw it again")
    return files


def _settings(
    arguments: argparse.Namespace, plan: SamplePlan, classes: list[int], guidance: Guidance | None, computed: str
) -> dict[str, Any]:
    """Collect everything besides the model that the samples depend on."""
    return {
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
    """Return the model or an engine made of it, and a description."""
    on_gpu = model.device.type == "cuda"
    if engine and model.config.ablations:
        raise CommandError(
            f"--engine: it cannot pack an ablation, and this model has {model.config.describe_ablations()}"
        )
    if not (on_gpu and not model.config.ablations if engine is None else engine):
        return model, "the model as it is, in float32"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    made = optimize_for_inference(model, dtype)
    graph = "CUDA graphs" if made.graph_status == "on" else "no CUDA graphs"
    return made, f"the inference engine in {str(dtype).removeprefix('torch.')}, {graph}"


def _classes(arguments: argparse.Namespace, model: DiMR, folder: Path) -> list[int]:
    count = model.config.num_classes
    trained = find_trained_classes(count, folder)
    if arguments.classes is None:
        return trained if arguments.count else trained[:DEFAULT_CLASSES]
    names = find_class_names(count, folder, arguments.class_names)
    try:
        found = class_ids(arguments.classes, count, names, trained, model.config.unconditional_class)
    except ClassNameError as error:
        raise CommandError(f"--classes: {error}") from error
    untrained = sorted(set(found) - {*trained, count})
    if untrained:
        logger.warning("the model was not trained on class %s", ranges(untrained))
    return found


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
