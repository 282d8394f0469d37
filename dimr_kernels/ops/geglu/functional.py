"""The public function: checks, and which form runs."""

from __future__ import annotations

from torch import Tensor

from ... import checks
from ...dispatch import choose
from . import eager, op

FUSED_FORMS = {"geglu": "triton"}


def geglu(h: Tensor, value: Tensor | None = None, approximate: str = "none", gate: str = "first") -> Tensor:
    """Gated GELU: ``gelu(gate) * value`` (Shazeer 2020; DiMR's MLP).

    Args:
        h: ``[..., 2D]`` holding gate and value side by side, or the gate ``[..., D]`` where ``value`` is given.
        value: ``[..., D]``, of ``h``'s shape, dtype and device; None for the packed form.
        approximate: "none" is the exact erf, "tanh" the usual approximation.
        gate: which half of a packed ``h`` is the gate, "first" or "last". Not used with ``value``.

    Returns:
        ``[..., D]`` in ``h``'s dtype; float16 and bfloat16 are computed in float32.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit.
        BackendError: the implementation asked for cannot run (see :func:`dimr_kernels.use_backend`).

    Example:
        >>> import torch
        >>> h = torch.tensor([[-1.0, 2.0, 10.0, 10.0]])  # two gates, two values
        >>> geglu(h)
        tensor([[-1.5866, 19.5450]])
        >>> torch.equal(geglu(h), geglu(h[:, :2], h[:, 2:]))
        True
    """
    checks.check_floating("geglu", h=h, value=value)
    checks.check_choice("geglu", "approximate", approximate, ("none", "tanh"))
    checks.check_choice("geglu", "gate", gate, ("first", "last"))
    if h.dim() == 0:
        raise ValueError("geglu: h must have at least one dimension, got a scalar")
    fused = choose("geglu", h, "triton") == "triton"
    if value is None:
        if h.shape[-1] % 2:
            raise ValueError(f"geglu: h must have an even last dimension [..., 2D], got shape {list(h.shape)}")
        gate_first = gate == "first"
        if not fused:
            return eager.geglu_packed(h, approximate, gate_first)
        return op.geglu_packed(h, approximate, gate_first)
    checks.check_shape("geglu", "value", value, tuple(h.shape))
    checks.check_same_dtype("geglu", h=h, value=value)
    checks.check_same_device("geglu", h=h, value=value)
    if not fused:
        return eager.geglu_pair(h, value, approximate)
    return op.geglu_pair(h, value, approximate)
