"""Checks of the arguments of time-dependent operators: the timestep, and a pair of parameters with its gate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import checks

GATES = ("p1", "p2", "p3", "p4", "scale_gate_weight", "scale_gate_offset", "shift_gate_weight", "shift_gate_offset")
SHIFT = ("p3", "p4", "shift_gate_weight", "shift_gate_offset")


def as_timesteps(operator: str, t: Tensor | float, x: Tensor) -> Tensor:
    """``t`` for a batch ``x [B, ...]`` as a tensor ``[B]`` or ``[1]`` on x's device.

    NaN is refused where looking costs no wait for a GPU: numbers and CPU tensors, outside torch.compile and torch.func.
    """
    if not isinstance(t, Tensor):
        if not isinstance(t, (float, int, torch.SymFloat, torch.SymInt)):
            raise TypeError(f"{operator}: t must be a Tensor or a float, got {type(t).__name__}")
        if not torch.compiler.is_compiling() and math.isnan(t):
            raise ValueError(f"{operator}: t is NaN")
        return torch.full((1,), t, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    if t.dtype not in checks.FLOATING or t.device != x.device:
        checks.check_floating(operator, t=t)
        checks.check_same_device(operator, x=x, t=t)
    if t.dim() > 1 or t.numel() not in (1, x.shape[0]):
        raise ValueError(
            f"{operator}: t must have shape [B] = [{x.shape[0]}], [1] or [], got {list(t.shape)} for x {list(x.shape)}"
        )
    if checks.values_are_at_hand(t):
        refuse_nan(operator, t)
    return t if t.dim() == 1 else t.reshape(1)


def refuse_nan(operator: str, t: Tensor) -> None:
    if bool(t.detach().isnan().any()):
        raise ValueError(f"{operator}: t holds NaN: {t.tolist()}")


def check_gates(
    operator: str, D: int, device: torch.device, gates: Sequence[Tensor | None], needs_shift: bool = False
) -> None:
    """The parameters of a time-dependent norm in the order of ``GATES``; the shift's may be None, all or none."""
    named: dict[str, Any] = dict(zip(GATES, gates, strict=True))
    shift = {name: named.pop(name) for name in SHIFT}
    check_gated_pair(operator, D, device, **named)
    if needs_shift or any(value is not None for value in shift.values()):
        check_gated_pair(operator, D, device, **shift)


def check_gated_pair(operator: str, D: int, device: torch.device, **tensors: Any) -> None:
    """In this order: two parameters ``[D]``, their gate's weight and offset (both ``[D]`` or both ``[1]``)."""
    wanted = (D,)
    for tensor in tensors.values():
        if (
            not isinstance(tensor, Tensor)
            or tensor.shape != wanted
            or tensor.device != device
            or tensor.dtype not in checks.FLOATING
        ):
            break
    else:
        return  # what nearly every call brings
    _explain_gated_pair(operator, D, device, tensors)


def _explain_gated_pair(operator: str, D: int, device: torch.device, tensors: dict[str, Any]) -> None:
    """Name what does not fit; a scalar gate does."""
    (_, first), (_, second), (weight_name, weight), (offset_name, offset) = tensors.items()
    for name, tensor in tensors.items():
        checks.check_floating_tensor(operator, name, tensor)
        if tensor.device != device:
            raise ValueError(f"{operator}: {name} is on {tensor.device}, x is on {device}")
        shape = tensor.shape
        if shape != (D,) and (tensor is first or tensor is second or shape != (1,)):
            wanted = f"[{D}] (a gate per channel) or [1]" if name in (weight_name, offset_name) else f"[{D}]"
            raise ValueError(f"{operator}: {name} must have shape {wanted}, got {list(shape)}")
    if weight.shape != offset.shape:
        raise ValueError(
            f"{operator}: {offset_name} must have {weight_name}'s shape {list(weight.shape)}, got {list(offset.shape)}"
        )
