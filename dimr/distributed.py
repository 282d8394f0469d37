"""Communication between the processes of a run, and models replicated (DDP) or sharded (FSDP2) over them."""

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

STRATEGIES = ("ddp", "fsdp")


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process's place among the processes of a run. The methods are collective: all ranks call them in order."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """True on rank 0, the one that writes files and reports progress."""
        return self.rank == 0

    def average(self, values: Tensor) -> Tensor:
        """Replace ``values`` by their mean over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
            values.div_(self.world_size)
        return values

    def all_reduce_max(self, value: int) -> int:
        """Return the largest of the ranks' values. The hosts wait for each other, but not for their devices."""
        if self.world_size == 1:
            return value
        largest = torch.tensor(value)  # on the CPU, so that gloo does it
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.all_reduce_max(0)

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def all_gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in the order of the ranks."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def run_on_main(self, action: Callable[[], object], error_type: type[Exception]) -> None:
        """Run ``action`` on rank 0 only. Its failure is raised on every rank, so that none waits for it forever.

        Raises:
            error_type: ``action`` raised an ``error_type`` or an OSError; the message is the same.
        """
        cause, message = None, None
        if self.is_main:
            try:
                action()
            except (error_type, OSError) as error:
                cause, message = error, str(error)
        message = self.broadcast(message)
        if message is not None:
            raise error_type(message) from cause


def local_device(kind: str) -> torch.device:
    """Return this process's own device, where each process has one GPU."""
    return torch.device(kind, int(os.environ.get("LOCAL_RANK", 0))) if kind == "cuda" else torch.device(kind)


@contextlib.contextmanager
def joined_processes(device: torch.device) -> Iterator[Processes]:
    """Join the process group that torchrun started, for the length of the block: NCCL between GPUs, gloo between CPUs.

    Without torchrun's environment variables this process is the only one.
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
        gc.collect()  # objects in cycles hold on to the group, whose threads must end before the interpreter does
        dist.destroy_process_group()


# Replicated and sharded models.


def check_strategy(strategy: str) -> None:
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(map(repr, STRATEGIES))}; got {strategy!r}")


def shard(model: DiMR, processes: Processes) -> None:
    """Shard the parameters over all processes (FSDP2), in place. A block's parameters are gathered while it runs."""
    mesh = init_device_mesh(model.device.type, (processes.world_size,))
    for branch in model.branches:
        for block in branch.blocks:  # type: ignore[union-attr]
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def replicate(model: DiMR, processes: Processes) -> nn.Module:
    """Wrap the model in DDP, which averages the gradients in the backward; a single process gets the model itself."""
    if processes.world_size == 1:
        return model
    device_ids = [model.device] if model.device.type == "cuda" else None
    # A depthwise kernel [C, 1, K, K] has a dimension of size 1, whose stride means nothing.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    return DistributedDataParallel(model, device_ids, gradient_as_bucket_view=True)


def reshard(model: nn.Module) -> None:
    """Free the full parameters that a forward of a sharded model left, so that the next one gathers them anew."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def no_gradient_sync(predictor: nn.Module, model: nn.Module) -> AbstractContextManager[Any]:
    """Accumulate gradients locally inside the block; the first backward after it synchronises their sum."""
    if isinstance(predictor, DistributedDataParallel):
        return predictor.no_sync()
    return _no_fsdp_sync(model) if isinstance(model, FSDPModule) else contextlib.nullcontext()


@contextlib.contextmanager
def _no_fsdp_sync(model: FSDPModule) -> Iterator[None]:
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


# Sharded state, saved and loaded as one process has it.
#
# torch.distributed.checkpoint.state_dict gives the same tensors (tried with torch 2.13) but would need more code. It
# keys the optimizer's state by parameter name, where files of runs have torch's own indices, and accepts moments of a
# wrong shape; the moving average is no module's state, so that it would still need the functions below.


def local_tensor(tensor: Tensor) -> Tensor:
    """Return this process's shard of a sharded tensor; any other tensor is returned as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor, on its device; any other tensor is returned as it is. Collective."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_state(tree: Any, keep: bool) -> Any:
    """Gather the sharded tensors of a tree on the CPU. Collective. Ranks that do not ``keep`` them get empty ones."""

    def gather(leaf: Any) -> Any:
        if not isinstance(leaf, DTensor):
            return leaf
        full = leaf.full_tensor()
        return full.cpu() if keep else full.new_empty(0)

    return tree_map(gather, tree)


def shard_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Shard a full tensor as ``parameter`` is sharded; if it is not, return the tensor as it is."""
    if not isinstance(parameter, DTensor):
        return value
    local = value.to(parameter.device)
    return distribute_tensor(local, parameter.device_mesh, parameter.placements, src_data_rank=None)


@torch.no_grad()
def load_model_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load full tensors into a model that may be sharded."""
    own = model.state_dict()
    model.load_state_dict({name: shard_like(v, own[name]) if name in own else v for name, v in state.items()})


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any], parameters: list[Tensor]) -> None:
    """Load full tensors into an optimizer of parameters that may be sharded; its groups keep their own settings.

    Args:
        parameters: the optimizer's parameters in the state's order, which other groups may have made another one.

    Raises:
        ValueError: a tensor's shape is not its parameter's.
    """
    own = optimizer.state_dict()
    numbers = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    moments: dict[int, dict[str, Any]] = {}
    for index, values in state["state"].items():
        parameter = parameters[index]
        loaded = moments[numbers[id(parameter)]] = {}
        for key, value in values.items():
            if key != "step":
                if value.shape != parameter.shape:
                    found, wanted = list(value.shape), list(parameter.shape)
                    raise ValueError(f"{key} of parameter {index}: {found}, wanted {wanted}")
                value = shard_like(value, parameter)
            loaded[key] = value
    optimizer.load_state_dict({"state": moments, "param_groups": own["param_groups"]})
