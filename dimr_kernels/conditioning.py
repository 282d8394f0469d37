"""The timestep of the enclosing block, for models whose forward has no argument for it."""

from __future__ import annotations

from torch import Tensor

from .scoped import ScopedSetting, ScopedValue

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
    t = _timestep.get()
    if t is None:
        raise ValueError(
            f"{operator}: no timestep: pass t, or call it inside `with dimr_kernels.time_conditioning(t):`"
        )
    return t
