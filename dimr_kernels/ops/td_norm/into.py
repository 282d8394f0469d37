"""The time-dependent norms for inference: ``dimr_kernels::td_norm_into``, without a backward.

They differ from ``td_norm`` in where the sum goes (into a tensor that the caller has, of any row stride) and in
``offset [D]``, which is added before the norm and is not part of the sum.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..registration import define_op
from ..time_gate.arguments import GATES, by_kind
from . import eager


def definition(
    x: Tensor, residual: Tensor | None, total: Tensor | None, offset: Tensor | None, t: Tensor, *gates_eps_rms: Any
) -> Tensor:
    """``x [B, ..., D]``, ``offset [D]``, ``t [B]`` or ``[1]`` -> the norm of ``x + residual + offset`` in x's dtype."""
    if residual is not None:
        x = torch.add(x, residual, out=total)
    summed = x if offset is None else x.to(torch.promote_types(x.dtype, torch.float32)) + offset
    return eager.td_norm(summed, None, t, *gates_eps_rms)[0].to(x.dtype)  # type: ignore[call-arg]


def _forward(
    x: Tensor, residual: Tensor | None, total: Tensor | None, offset: Tensor | None, t: Tensor, *rest: Any
) -> Tensor:
    from . import triton as kernels

    *gates, eps, rms = rest
    return kernels.forward_into(x, residual, total, offset, t, by_kind(gates), eps, rms)


td_norm_into = define_op(
    "td_norm_into(Tensor x, Tensor? residual, Tensor(a!)? total, Tensor? offset, Tensor t, "
    f"{GATES}, float eps, bool rms) -> Tensor",
    kernel=_forward,
    fake=lambda x, *rest: x.new_empty(x.shape),
)
