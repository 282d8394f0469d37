"""The processes of a run: one, or as many as torchrun started."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

from .model.network import DiMR


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


# One model in several processes: replicated (DDP) or sharded (FSDP2).


STRATEGIES = ("ddp", "fsdp")


def check_strategy(strategy: str) -> None:
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(map(repr, STRATEGIES))}; got {strategy!r}")


def shard(model: DiMR, processes: Processes) -> None:
    """Shard the parameters over all processes, in place; a block's are together only while it runs."""
    mesh = init_device_mesh(model.device.type, (processes.world_size,))
    for branch in model.branches:
        for block in branch.blocks:  # type: ignore[union-attr]
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def replicate(model: DiMR, processes: Processes) -> nn.Module:
    """What to call so that the processes' gradients are averaged in the backward."""
    if processes.world_size == 1:
        return model
    device_ids = [model.device] if model.device.type == "cuda" else None
    # Of a depthwise kernel [C, 1, K, K]: the stride of the dimension of one element, which means nothing.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    return DistributedDataParallel(model, device_ids, gradient_as_bucket_view=True)


def forget_gathered(model: nn.Module) -> None:
    """Let go of whole parameters that a forward of a sharded model left; the next one gathers them anew."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local_gradients(predictor: nn.Module, model: nn.Module) -> AbstractContextManager[Any]:
    """Inside it a backward keeps its gradients to this process; the next one outside sends the sum."""
    if isinstance(predictor, DistributedDataParallel):
        return predictor.no_sync()
    return _unsynchronized(model) if isinstance(model, FSDPModule) else contextlib.nullcontext()


@contextlib.contextmanager
def _unsynchronized(model: FSDPModule) -> Iterator[None]:
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


# A sharded model's tensors as if they were in one process.


def local_part(tensor: Tensor) -> Tensor:
    """This process's shard, or the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor that a sharded one is part of, on its device. All processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tree: Any, keep: bool) -> Any:
    """The tree with sharded tensors whole, on the CPU; empty where not to ``keep``. All processes must ask."""

    def gather(leaf: Any) -> Any:
        if not isinstance(leaf, DTensor):
            return leaf
        full = leaf.full_tensor()
        return full.cpu() if keep else full.new_empty(0)

    return tree_map(gather, tree)


def sharded_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor's shard as ``parameter`` is sharded; if it is not, the tensor itself."""
    if not isinstance(parameter, DTensor):
        return value
    local = value.to(parameter.device)
    return distribute_tensor(local, parameter.device_mesh, parameter.placements, src_data_rank=None)


@torch.no_grad()
def load_model_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    own = model.state_dict()
    model.load_state_dict({name: sharded_like(v, own[name]) if name in own else v for name, v in state.items()})


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """From a state of whole tensors. ValueError where one has another shape than its parameter."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, values in state["state"].items():
        for k, v in values.items():
            if k != "step" and v.shape != parameters[index].shape:
                raise ValueError(f"{k} of parameter {index}: {list(v.shape)}, wanted {list(parameters[index].shape)}")
    moments = {
        index: {k: sharded_like(v, parameters[index]) if k != "step" else v for k, v in values.items()}
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})
