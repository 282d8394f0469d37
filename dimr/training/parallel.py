"""One model in several processes: replicated (DDP) or sharded (FSDP2)."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from ..network import DiMR
from .processes import Processes

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
