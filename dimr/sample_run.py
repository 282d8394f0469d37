"""Drawing many numbered samples, over several processes and over several runs."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .batched_sampling import draw_batches, numbered_noise
from .hashes import add_file
from .optional import require
from .sample_files import SampleFiles, SampleFilesError, claim
from .sampling import NoisePredictor
from .training.processes import Processes

HASHED = (".json", ".safetensors", ".bin")


@dataclasses.dataclass(frozen=True)
class SamplePlan:
    """Which samples there are: number i has class ``labels[i]`` and noise made of ``seed`` and i.

    Batches hold consecutive numbers, and whole batches go to processes. So neither the number of processes nor a
    restart changes what is computed together, hence not a bit of the result.
    """

    labels: Tensor  # [N] int64
    seed: int
    batch_size: int

    @property
    def batches(self) -> list[range]:
        N = len(self.labels)
        return [range(start, min(start + self.batch_size, N)) for start in range(0, N, self.batch_size)]


def claim_first(files: SampleFiles, settings: dict[str, Any], overwrite: bool, processes: Processes) -> None:
    """:func:`~dimr.sample_files.claim` in the first process; its error is everyone's."""
    failed = processes.first_does(lambda: claim(files.folder, settings, overwrite), SampleFilesError, OSError)
    if failed is not None:
        raise SampleFilesError(failed)


def missing_batches(files: SampleFiles, plan: SamplePlan, processes: Processes) -> list[range]:
    """The batches that no earlier run finished, in order; each process looks at its share of the files."""
    share = plan.batches[processes.rank :: processes.world_size]
    missing = processes.all([numbers for numbers in share if not files.has(numbers)])
    return sorted((numbers for part in missing for numbers in part), key=lambda numbers: numbers.start)


def draw_missing(
    files: SampleFiles,
    model: NoisePredictor,
    plan: SamplePlan,
    missing: list[range],
    processes: Processes,
    decode: Callable[[Tensor], Tensor] | None = None,
    **options: Any,
) -> None:
    """Draw this process's share of the missing batches into ``files``; at the end all of them are there.

    The first process shows images/s and time left of the whole run, taking the others to be as fast as itself.

    Args:
        decode: latents on the CPU to images.
        options: of :func:`dimr.sample`.
    """
    mine = missing[processes.rank :: processes.world_size]
    total = sum(map(len, missing))
    done = len(plan.labels) - total
    tqdm = require("tqdm", "demo", "the progress bar").tqdm
    with tqdm(
        total=len(plan.labels), initial=done, desc="sampling", unit="images", dynamic_ncols=True,
        disable=not processes.first,
    ) as bar:  # fmt: skip
        drawn = draw_batches(model, _inputs(model, plan, mine), **options)
        for numbers, samples in zip(mine, drawn, strict=True):
            files.put(numbers, samples if decode is None else decode(samples))
            bar.update(min(len(numbers) * processes.world_size, bar.total - bar.n))
        processes.largest(0)  # the others have written theirs
        bar.update(bar.total - bar.n)


def _inputs(model: NoisePredictor, plan: SamplePlan, batches: list[range]) -> Iterator[tuple[Tensor, Tensor]]:
    config = model.config
    shape = (config.in_channels, config.input_size, config.input_size)
    on_gpu = model.device.type == "cuda"
    labels = plan.labels.to(model.device)
    for numbers in batches:
        yield labels[numbers.start : numbers.stop], numbered_noise(shape, plan.seed, numbers, pin_memory=on_gpu)


def fingerprint(folder: Path) -> str:
    """SHA-256 of a model's files, by which a run that goes on knows that the model is the same."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in HASHED):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        add_file(digest, path)
    return digest.hexdigest()


def labels_of(classes: list[int], per_class: int, count: int | None) -> Tensor:
    """``[N]``: class after class, ``per_class`` of each; or ``count`` of the classes in turn."""
    ids = torch.tensor(classes)
    if count is not None:
        return ids.repeat(-(-count // len(ids)))[:count]
    return ids.repeat_interleave(per_class)
