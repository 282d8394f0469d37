"""Scale and shift of the time-dependent norms, gamma(t) and beta(t): parameters, definition, timesteps, checks.

``gamma = s p1 + (1 - s) p2`` with the gate ``s = sigmoid(w t + o)`` (DiMR eq. (5)); beta likewise from p3 and p4.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import checks
from ..dispatch import ScopedSetting, ScopedValue

WIDEST_IN_REGISTERS = 8192
"""Widest row that one program of the norms' kernels holds whole."""

# The order of public signatures and of the torch.ops schemas.
GATES = ("p1", "p2", "p3", "p4", "scale_gate_weight", "scale_gate_offset", "shift_gate_weight", "shift_gate_offset")
GATES_SCHEMA = (
    "Tensor p1, Tensor p2, Tensor? p3, Tensor? p4, Tensor scale_gate_weight, Tensor scale_gate_offset, "
    "Tensor? shift_gate_weight, Tensor? shift_gate_offset"
)


class GateParameters(NamedTuple):
    """The parameters of gamma(t) and beta(t) in the order of the kernels' arguments; the shift's are None without one.

    Also holds one value for each of them, such as its gradient or whether it needs one.
    """

    p1: Any
    p2: Any
    scale_gate_weight: Any
    scale_gate_offset: Any
    p3: Any = None
    p4: Any = None
    shift_gate_weight: Any = None
    shift_gate_offset: Any = None

    @classmethod
    def from_schema(cls, values: Sequence[Any]) -> GateParameters:
        """Read values in the order of the torch.ops schemas, ``GATES``."""
        p1, p2, p3, p4, scale_weight, scale_offset, shift_weight, shift_offset = values
        return cls(p1, p2, scale_weight, scale_offset, p3, p4, shift_weight, shift_offset)

    def in_schema_order(self) -> tuple[Any, ...]:
        p1, p2, scale_weight, scale_offset, p3, p4, shift_weight, shift_offset = self
        return p1, p2, p3, p4, scale_weight, scale_offset, shift_weight, shift_offset


def mixed(
    t: Tensor, first: Tensor, second: Tensor, gate_weight: Tensor, gate_offset: Tensor, dtype: torch.dtype
) -> Tensor:
    """Mix two parameters: ``t [T]``, ``first, second [D]``, gate ``[D]`` or ``[1]`` -> ``[T, D]`` in ``dtype``.

    Written so that two equal parameters give themselves, whatever the gate.
    """
    values = (t, first, second, gate_weight, gate_offset)
    t, first, second, gate_weight, gate_offset = (v if v.dtype == dtype else v.to(dtype) for v in values)
    gate = torch.sigmoid(torch.addcmul(gate_offset, gate_weight, t[:, None]))  # [T, D] or [T, 1]
    return torch.addcmul(second, gate, first - second)


def scale_and_shift(t: Tensor, gates: GateParameters, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Compute gamma(t) and beta(t), ``[T, D]`` each in ``dtype``; beta is None where there is no shift."""
    gamma = mixed(t, gates.p1, gates.p2, gates.scale_gate_weight, gates.scale_gate_offset, dtype)
    if gates.p3 is None:
        return gamma, None
    return gamma, mixed(t, gates.p3, gates.p4, gates.shift_gate_weight, gates.shift_gate_offset, dtype)


_timestep: ScopedValue[Tensor | float | None] = ScopedValue("dimr_kernels_timestep", None)


def time_conditioning(t: Tensor | float) -> ScopedSetting[Tensor | float | None]:
    """Context manager: time-dependent norms called without ``t`` inside the block use this one.

    ``t`` is ``[B]``, ``[1]``, a 0-d tensor or a float, as for :func:`dimr_kernels.functional.td_layer_norm`. Blocks
    nest; each thread and asynchronous task has its own value in eager code, while code that torch.compile traced reads
    one value per process. Activation checkpointing runs the forward again during the backward: there the block has to
    lie inside the checkpointed function.

    Example:
        >>> import torch, dimr_kernels as dk
        >>> norm = dk.TDLayerNorm(8)
        >>> with time_conditioning(torch.tensor([-1.0, 0.5])):
        ...     norm(torch.randn(2, 3, 8)).shape
        torch.Size([2, 3, 8])
    """
    if not isinstance(t, (Tensor, float, int)):
        raise TypeError(f"time_conditioning: t must be a Tensor or a float, got {type(t).__name__}")
    return _timestep.set_to(t)


def current_timestep(operator: str) -> Tensor | float:
    """Return the timestep of the enclosing :func:`time_conditioning` block."""
    t = _timestep.get()
    if t is None:
        raise ValueError(
            f"{operator}: no timestep: pass t, or call it inside `with dimr_kernels.time_conditioning(t):`"
        )
    return t


def as_timesteps(operator: str, t: Tensor | float, x: Tensor) -> Tensor:
    """Convert ``t`` for a batch ``x [B, ...]`` to a tensor ``[B]`` or ``[1]`` on x's device.

    NaN is refused where reading values does not synchronise: numbers and CPU tensors, outside torch.compile and
    torch.func.
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
    if checks.can_read_values(t):
        refuse_nan(operator, t)
    return t if t.dim() == 1 else t.reshape(1)


def refuse_nan(operator: str, t: Tensor) -> None:
    if bool(t.detach().isnan().any()):
        raise ValueError(f"{operator}: t holds NaN: {t.tolist()}")


def check_gates(
    operator: str, D: int, device: torch.device, gates: GateParameters, needs_shift: bool = False
) -> None:  # fmt: skip
    """Check shapes, dtypes and devices; the shift's four parameters may be None, all or none of them."""
    p1, p2, scale_weight, scale_offset, p3, p4, shift_weight, shift_offset = gates
    _check_pair(operator, D, device, GateParameters._fields[:4], (p1, p2, scale_weight, scale_offset))
    no_shift = p3 is None and p4 is None and shift_weight is None and shift_offset is None
    if needs_shift or not no_shift:
        _check_pair(operator, D, device, GateParameters._fields[4:], (p3, p4, shift_weight, shift_offset))


def _check_pair(
    operator: str, D: int, device: torch.device, names: Sequence[str], pair: tuple[Any, Any, Any, Any]
) -> None:  # fmt: skip
    """Check two parameters ``[D]`` and their gate's weight and offset, both ``[D]`` or both ``[1]``."""
    wanted = (D,)
    for tensor in pair:
        if (
            not isinstance(tensor, Tensor)
            or tensor.shape != wanted
            or tensor.device != device
            or tensor.dtype not in checks.FLOATING
        ):
            break
    else:
        return  # what nearly every call passes
    _explain_misfit(operator, D, device, names, pair)


def _explain_misfit(
    operator: str, D: int, device: torch.device, names: Sequence[str], pair: tuple[Any, Any, Any, Any]
) -> None:  # fmt: skip
    """Raise for the argument that does not fit; return for a scalar gate, which does."""
    for i, (name, tensor) in enumerate(zip(names, pair, strict=True)):
        checks.check_floating_tensor(operator, name, tensor)
        if tensor.device != device:
            raise ValueError(f"{operator}: {name} is on {tensor.device}, x is on {device}")
        is_gate = i >= 2
        shape = tensor.shape
        if shape != (D,) and not (is_gate and shape == (1,)):
            wanted = f"[{D}] (a gate per channel) or [1]" if is_gate else f"[{D}]"
            raise ValueError(f"{operator}: {name} must have shape {wanted}, got {list(shape)}")
    *_, weight, offset = pair
    if weight.shape != offset.shape:
        raise ValueError(
            f"{operator}: {names[3]} must have {names[2]}'s shape {list(weight.shape)}, got {list(offset.shape)}"
        )


def fake_gradients(tensors: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor]:
    """Return an empty gradient for each tensor that needs one."""
    return [v.new_empty(v.shape) for v, need in zip(tensors, needs, strict=True) if need]


def fake_backward(grad: Tensor, x: Tensor, stats: Tensor, t: Tensor, _: int, *rest: Any) -> list[Tensor]:
    """Return empty gradients for the backward of an operator with one integer before its gates."""
    *gates, needs = rest
    return fake_gradients((x, t, *gates), needs)


def computed_gradients(dx: Tensor | None, dt: Tensor | None, dgates: GateParameters) -> list[Tensor]:
    """List the gradients that were computed, in the order in which :func:`scatter_gradients` takes them."""
    return [g for g in (dx, dt, *dgates.in_schema_order()) if g is not None]


def scatter_gradients(needs: Sequence[bool], found: Iterable[Tensor]) -> list[Tensor | None]:
    """Put each gradient that was computed in the place of its tensor, and None for the others."""
    remaining = iter(found)
    return [next(remaining) if need else None for need in needs]
