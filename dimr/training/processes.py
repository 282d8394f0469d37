"""The processes of a run: one, or as many as torchrun started."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among those of the run. Each must call these methods, in the same order."""

    rank: int = 0
    world_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def average(self, values: Tensor) -> Tensor:
        """The mean over the processes, in place."""
        return self.total(values) if self.world_size == 1 else self.total(values).div_(self.world_size)

    def total(self, values: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def largest(self, value: int) -> int:
        """The largest of the processes' values. The hosts wait for each other, no device is waited for."""
        if self.world_size == 1:
            return value
        largest = torch.tensor(value)  # on the CPU, which gloo serves
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def from_first(self, value: Any) -> Any:
        """What the first process has."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def first_does(self, action: Callable[[], object], *errors: type[Exception]) -> str | None:
        """Run ``action`` in the first process, and tell all what one of ``errors`` said there: none waits for ever."""
        failed = None
        if self.first:
            try:
                action()
            except errors as error:
                failed = str(error)
        return self.from_first(failed)

    def all(self, value: Any) -> list[Any]:
        """What each process has, in the order of their ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


def local_device(kind: str) -> torch.device:
    """The device of this process where each has a GPU of its own."""
    return torch.device(kind, int(os.environ.get("LOCAL_RANK", 0))) if kind == "cuda" else torch.device(kind)


@contextlib.contextmanager
def joined_processes(device: torch.device) -> Iterator[Processes]:
    """Inside the block the processes that torchrun started can talk: over NCCL between GPUs, over gloo between CPUs.

    Without torchrun's variables in the environment this process is the only one.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if world_size == 1:
        yield Processes()
        return
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    try:
        yield Processes(dist.get_rank(), world_size)
    finally:
        gc.collect()  # what holds on to the group in a cycle; its threads must end before the interpreter does
        dist.destroy_process_group()
