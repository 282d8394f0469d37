"""The public function: checks, and which form runs."""

from __future__ import annotations

from torch import Tensor

from ... import checks
from ...dispatch import current_backend
from . import run

FUSED_FORMS: dict[str, str] = {}  # its forms are torch's and flash-attn's, which have rules of their own


def attention(q: Tensor, k: Tensor, v: Tensor, backend: str = "auto", scale: float | None = None) -> Tensor:
    """Scaled dot-product attention without mask: ``softmax(q k^T * scale) v`` (Vaswani et al. 2017, eq. 1).

    Args:
        q: ``[B, heads, L, head_dim]``. q, k and v may be views of one packed projection: nothing is copied as long as
            the last stride is 1 and the head dim a multiple of 8 (see :func:`dimr_kernels.packing.pad_head_dim`).
        k: ``[B, heads, S, head_dim]``.
        v: ``[B, heads, S, value_dim]``.
        backend: "auto" takes flash-attn where it is installed and the input suits it, else the best kernel of torch's
            scaled_dot_product_attention; "flash_attn", "flash", "cudnn", "efficient" and "math" are binding;
            "eager" is the definition in plain PyTorch.
        scale: None is ``1/sqrt(head_dim)``.

    ``use_backend("eager")`` turns "auto" into "eager". ``use_backend("triton")`` and ``use_backend("cuda")`` leave
    attention alone: its fused forms are torch's and flash-attn's, not this package's.

    Returns:
        ``[B, heads, L, value_dim]`` in q's dtype, or autocast's.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit.
        BackendError: the backend asked for cannot compute this call; the message says why.

    Example:
        >>> import torch
        >>> q, k, v = torch.randn(3, 2, 4, 5, 16)  # batch 2, 4 heads, 5 tokens
        >>> attention(q, k, v).shape
        torch.Size([2, 4, 5, 16])
    """
    checks.check_choice("attention", "backend", backend, run.BACKENDS)
    checks.check_floating("attention", q=q, k=k, v=v)
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        checks.check_rank("attention", name, tensor, 4, "[B, heads, L, head_dim]")
    if q.shape[3] == 0:
        raise ValueError(f"attention: q must have a positive head_dim, got shape {list(q.shape)}")
    checks.check_shape("attention", "k", k, (q.shape[0], q.shape[1], k.shape[2], q.shape[3]))
    checks.check_shape("attention", "v", v, (q.shape[0], q.shape[1], k.shape[2], v.shape[3]))
    checks.check_same_device("attention", q=q, k=k, v=v)
    if scale is not None:
        checks.check_number("attention", "scale", scale)
    dtype = checks.autocast_dtype(q)
    if dtype is not None:
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    checks.check_same_dtype("attention", q=q, k=k, v=v)
    if backend == "auto" and current_backend() == "eager":
        backend = "eager"
    return run.attention(q, k, v, backend, q.shape[3] ** -0.5 if scale is None else scale)
