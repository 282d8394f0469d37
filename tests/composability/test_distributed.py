"""DistributedDataParallel and FSDP2 over gloo: one process for every cell, two for a few."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import dimr_kernels as dk
from tests.support.processes import end_here

from .cells import DEVICE, Cell, assert_same, each_cell, loss_of, outputs_of, plain_results

pytestmark = pytest.mark.skipif(
    DEVICE.type != "cpu" or not distributed.is_gloo_available(), reason="runs on a CPU over gloo"
)
IN_TWO_PROCESSES = ("TDLayerNorm + residual", "GEGLUMLP", "PixelShuffleUpsample", "SelfAttention")


def _join(folder: Path, rank: int, size: int) -> None:
    store = distributed.FileStore(str(folder / "store"), size)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=size)


@pytest.fixture(scope="module")
def group(tmp_path_factory) -> Iterator[None]:
    _join(tmp_path_factory.mktemp("gloo"), 0, 1)
    yield
    distributed.destroy_process_group()


def _gradients(module, cell: Cell, rank: int = 0, size: int = 1):
    """Return the gradients of one rank's part of a batch of two."""
    inputs = [x.detach()[rank : rank + 2 // size] for x in cell.inputs()]
    loss_of(outputs_of(module, inputs)).backward()
    parameters = {name.removeprefix("module."): parameter for name, parameter in module.named_parameters()}
    return {name: getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for name, p in parameters.items()}


def _expected(cell: Cell):
    return {name: value for name, value in plain_results(cell).items() if name[:6] not in ("output", "input ")}


def _sharded(module):
    return fully_shard(module, mesh=init_device_mesh("cpu", (distributed.get_world_size(),)))


@each_cell("DistributedDataParallel")
def test_ddp(cell, group):
    with cell.running():
        assert_same(_gradients(DistributedDataParallel(cell.module()), cell), _expected(cell))


@each_cell("FSDP2 (fully_shard)")
def test_fsdp(cell, group):
    with cell.running():
        assert_same(_gradients(_sharded(cell.module()), cell), _expected(cell))


def _work(rank: int, folder: Path) -> None:
    """Run one of two processes, and check that the gradient is the mean of both parts'."""
    torch.set_num_threads(1)
    _join(folder, rank, 2)
    for subject in IN_TWO_PROCESSES:
        cell = Cell("FSDP2 (fully_shard)", subject, "fused")
        with dk.use_backend(cell.backend):
            parts = [_gradients(cell.module(), cell, part, 2) for part in range(2)]
            expected = {name: (value + parts[1][name]) / 2 for name, value in parts[0].items()}
            for wrap in (DistributedDataParallel, _sharded):
                assert_same(_gradients(wrap(cell.module()), cell, rank, 2), expected)
    distributed.destroy_process_group()
    end_here()


@pytest.mark.slow
def test_two_processes(tmp_path):
    torch.multiprocessing.spawn(_work, (tmp_path,), nprocs=2)
