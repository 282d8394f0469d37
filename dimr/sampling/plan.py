"""Drawing many samples in batches, over several processes and over several runs."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..diffusion.sample import NoisePredictor, sample
from ..distributed import Processes
from ..utils import add_file, require
from .files import SampleFiles, SampleFilesError, claim


def sample_in_batches(
    model: NoisePredictor, class_labels: Tensor, seed: int, batch_size: int, **options: Any
) -> Tensor:
    """Call :func:`dimr.sample` for ``class_labels [N]``, ``batch_size`` at a time, with a progress bar.

    Returns:
        ``[N, C, S, S]`` float32 on the CPU. All noise is drawn there at once, so that it depends neither on the device
        nor on the batch size.
    """
    config, N = model.config, len(class_labels)
    generator = torch.Generator().manual_seed(seed)
    shape = (N, config.in_channels, config.input_size, config.input_size)
    noise = torch.randn(shape, generator=generator, pin_memory=model.device.type == "cuda")
    batches = list(zip(class_labels.to(model.device).split(batch_size), noise.split(batch_size), strict=True))
    tqdm = require("tqdm", "demo", "the progress bar").tqdm
    drawn = draw_batches(model, batches, **options)
    return torch.cat(list(tqdm(drawn, total=len(batches), desc="sampling", unit="batch", dynamic_ncols=True)))


def draw_batches(model: NoisePredictor, batches: Iterable[tuple[Tensor, Tensor]], **options: Any) -> Iterator[Tensor]:
    """Yield the samples of each ``(class_labels [B], noise [B, C, S, S])`` on the CPU.

    A GPU's batch is yielded once the next one is queued, through pinned memory, so that the device computes while the
    caller decodes or writes.
    """
    ahead = 1 if model.device.type == "cuda" else 0
    queued: deque[Callable[[], Tensor]] = deque()
    for class_labels, noise in batches:
        queued.append(_to_host(sample(model, class_labels, noise, **options)))
        if len(queued) > ahead:
            yield queued.popleft()()
    while queued:
        yield queued.popleft()()


def _to_host(samples: Tensor) -> Callable[[], Tensor]:
    """Start the copy to the CPU; the returned function waits for it."""
    if samples.device.type != "cuda":
        return lambda: samples
    host = torch.empty(samples.shape, pin_memory=True).copy_(samples, non_blocking=True)
    copied = torch.cuda.current_stream(samples.device).record_event()

    def wait() -> Tensor:
        copied.synchronize()
        return host

    return wait


def numbered_noise(shape: Sequence[int], seed: int, numbers: Sequence[int], pin_memory: bool = False) -> Tensor:
    """Draw the noise ``[B, *shape]`` of the images with these numbers, on the CPU, each with its own generator.

    So an image depends on ``seed`` and its number, not on the images drawn with it or before it. torch's CPU generator
    uses 32 bits of its seed; these count up from the hash of ``seed``, so that no two images of a run share them.
    """
    start = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], "little")
    noise = torch.empty((len(numbers), *shape), pin_memory=pin_memory)
    for row, number in zip(noise, numbers, strict=True):
        row.normal_(generator=torch.Generator().manual_seed((start + number) % 2**32))
    return noise


@dataclasses.dataclass(frozen=True)
class SamplePlan:
    """The samples of a run: number i has class ``labels[i]`` and noise made from ``seed`` and i.

    Batches hold consecutive numbers, and each is drawn by one process. So neither the number of processes nor a restart
    changes which samples are computed together, and the result is the same bit for bit.
    """

    labels: Tensor  # [N] int64
    seed: int
    batch_size: int

    @property
    def batches(self) -> list[range]:
        N = len(self.labels)
        return [range(start, min(start + self.batch_size, N)) for start in range(0, N, self.batch_size)]


def claim_first(files: SampleFiles, settings: dict[str, Any], overwrite: bool, processes: Processes) -> None:
    """Call :func:`~dimr.sampling.files.claim` on rank 0; its error is re-raised on every rank."""
    processes.run_on_main(lambda: claim(files.folder, settings, overwrite), SampleFilesError)


def missing_batches(files: SampleFiles, plan: SamplePlan, processes: Processes) -> list[range]:
    """List the batches that no earlier run finished, in order; each process checks its share of the files."""
    share = plan.batches[processes.rank :: processes.world_size]
    missing = processes.all_gather([numbers for numbers in share if not files.has(numbers)])
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
    """Draw this process's share of the missing batches into ``files``, and wait for the other processes.

    Rank 0 shows the progress of the whole run, assuming that the other processes are as fast as itself.

    Args:
        decode: converts latents on the CPU to images.
        options: passed on to :func:`dimr.sample`.
    """
    mine = missing[processes.rank :: processes.world_size]
    total = sum(map(len, missing))
    done = len(plan.labels) - total
    tqdm = require("tqdm", "demo", "the progress bar").tqdm
    with tqdm(
        total=len(plan.labels), initial=done, desc="sampling", unit="images", dynamic_ncols=True,
        disable=not processes.is_main,
    ) as bar:  # fmt: skip
        drawn = draw_batches(model, _inputs(model, plan, mine), **options)
        for numbers, samples in zip(mine, drawn, strict=True):
            files.put(numbers, samples if decode is None else decode(samples))
            bar.update(min(len(numbers) * processes.world_size, bar.total - bar.n))
        processes.barrier()  # the others have written theirs
        bar.update(bar.total - bar.n)


def _inputs(model: NoisePredictor, plan: SamplePlan, batches: list[range]) -> Iterator[tuple[Tensor, Tensor]]:
    config = model.config
    shape = (config.in_channels, config.input_size, config.input_size)
    on_gpu = model.device.type == "cuda"
    labels = plan.labels.to(model.device)
    for numbers in batches:
        yield labels[numbers.start : numbers.stop], numbered_noise(shape, plan.seed, numbers, pin_memory=on_gpu)


_HASHED = (".json", ".safetensors", ".bin")


def fingerprint(folder: Path) -> str:
    """Return the SHA-256 of a model's files, by which a continued run checks that the model is the same."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in _HASHED):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        add_file(digest, path)
    return digest.hexdigest()


def labels_of(classes: list[int], per_class: int, count: int | None) -> Tensor:
    """Return the labels ``[N]``: ``count`` of the classes in turn, or else ``per_class`` of each class in order."""
    ids = torch.tensor(classes)
    if count is not None:
        return ids.repeat(-(-count // len(ids)))[:count]
    return ids.repeat_interleave(per_class)
