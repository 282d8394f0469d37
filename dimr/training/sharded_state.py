"""A sharded model's tensors as if they were in one process."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map


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
