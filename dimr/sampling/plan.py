"""More samples than fit in one batch."""

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
    """:func:`dimr.sample` for ``class_labels [N]``, ``batch_size`` at a time under a progress bar.

    Returns:
        ``[N, C, S, S]`` float32 on the CPU. The noise is drawn there, all at once: neither the device nor the batch
        size changes it.
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
    """:func:`dimr.sample` of one ``(class_labels [B], noise [B, C, S, S])`` after another, each on the CPU.

    A GPU's batch is handed out once the next is queued, through pinned memory: the device works on while the caller
    decodes or writes.
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
    """Start the copy; the result waits for it."""
    if samples.device.type != "cuda":
        return lambda: samples
    host = torch.empty(samples.shape, pin_memory=True).copy_(samples, non_blocking=True)
    copied = torch.cuda.current_stream(samples.device).record_event()

    def wait() -> Tensor:
        copied.synchronize()
        return host

    return wait


def numbered_noise(shape: Sequence[int], seed: int, numbers: Sequence[int], pin_memory: bool = False) -> Tensor:
    """``[B, *shape]`` on the CPU: the noise of the images with these numbers, each from a generator of its own.

    So an image depends on ``seed`` and its number, not on what else is drawn with it, before it or elsewhere. torch's
    CPU generator takes 32 bits of a seed: counting on from the hash of ``seed``, no two images of a run share them.
    """
    start = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], "little")
    noise = torch.empty((len(numbers), *shape), pin_memory=pin_memory)
    for row, number in zip(noise, numbers, strict=True):
        row.normal_(generator=torch.Generator().manual_seed((start + number) % 2**32))
    return noise


# Drawing many numbered samples, over several processes and over several runs.


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
    """:func:`~dimr.sampling.files.claim` in the first process; its error is everyone's."""
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
