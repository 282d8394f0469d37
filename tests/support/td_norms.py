"""The time-dependent norms by name, and random inputs of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dimr_kernels.functional import td_layer_norm, td_rms_norm

NORMS = {"layer": td_layer_norm, "rms": td_rms_norm}
SHIFT = ("p3", "p4", "shift_gate_weight", "shift_gate_offset")
GATES = ("p1", "p2", "p3", "p4", "scale_gate_weight", "scale_gate_offset", "shift_gate_weight", "shift_gate_offset")
# Tolerance for one number summed over all channels and rows: terms cancel, so it is smaller than they are.
COLLECTED_ULPS = 64.0


def arguments(
    norm: str,
    shape: tuple[int, ...],
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    parameter_dtype: torch.dtype = torch.float32,
    gate: str = "channel",
    shared: bool = False,
    residual: bool = False,
    offset: float = 0.0,
) -> dict[str, Any]:
    """Make random inputs of ``norm`` that all require a gradient."""

    def random(*size: int, dtype: torch.dtype = parameter_dtype, offset: float = 0.0) -> Tensor:
        return (offset + torch.randn(size, device=device)).to(dtype).requires_grad_()

    D = shape[-1]
    G = D if gate == "channel" else 1
    found = {"x": random(*shape, dtype=dtype, offset=offset), "t": random(1 if shared else shape[0])}
    found |= {name: random(G if "gate" in name else D) for name in GATES if norm == "layer" or name not in SHIFT}
    if residual:
        found["residual"] = random(*shape, dtype=dtype)
    return found
