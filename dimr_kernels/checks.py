"""Checks of arguments. Each message names the operator and argument, what was found and what is wanted."""

from __future__ import annotations

import torch
from torch import Tensor

# Not those of eight bits, which are for storage: torch itself computes nothing in them.
FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_floating(operator: str, **tensors: Tensor | None) -> None:
    """The first is required, the others may be None."""
    required = True
    for name, tensor in tensors.items():
        if required or tensor is not None:
            check_floating_tensor(operator, name, tensor)
        required = False


def check_floating_tensor(operator: str, name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{operator}: {name} must be a Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in FLOATING:
        raise TypeError(f"{operator}: {name} must have a floating-point dtype of 16 bits or more, got {tensor.dtype}")


def check_number(operator: str, name: str, value: object) -> None:
    if not isinstance(value, (float, int, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"{operator}: {name} must be a number, got {type(value).__name__}")


def values_are_at_hand(tensor: Tensor) -> bool:
    """Whether looking costs no wait for a GPU.

    Subclasses (fake tensors) and what ``torch.func`` wraps (a batch of vmap) may have no values to look at.
    """
    return (
        tensor.device.type == "cpu"
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def check_shape(operator: str, name: str, tensor: Tensor, wanted: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != tuple(wanted):
        raise ValueError(f"{operator}: {name} must have shape {list(wanted)}, got {list(tensor.shape)}")


def check_rank(operator: str, name: str, tensor: Tensor, rank: int, layout: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{operator}: {name} must be a Tensor, got {type(tensor).__name__}")
    if tensor.dim() != rank:
        raise ValueError(f"{operator}: {name} must have {rank} dimensions {layout}, got shape {list(tensor.shape)}")


def check_same_device(operator: str, **tensors: Tensor | None) -> None:
    """All on the first tensor's device."""
    first_name, first = "", None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if first is None:
            first_name, first = name, tensor
        elif tensor.device != first.device:
            raise ValueError(f"{operator}: {name} is on {tensor.device}, {first_name} is on {first.device}")


def check_same_dtype(operator: str, **tensors: Tensor | None) -> None:
    """All of the first tensor's dtype."""
    first_name, dtype = "", None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if dtype is None:
            first_name, dtype = name, tensor.dtype
        elif tensor.dtype != dtype:
            raise TypeError(f"{operator}: {name} has dtype {tensor.dtype}, {first_name} has {dtype}")


def check_choice(operator: str, name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{operator}: {name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The dtype that autocast would give this tensor's matrix products, or None outside autocast."""
    device_type = tensor.device.type
    if device_type == "meta" or tensor.dtype == torch.float64 or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)
