"""A linear layer on the faster of torch's two libraries of matrix products.

On a CPU torch hands products of float32 to MKL, which runs AVX2 code on CPUs that are not Intel's. oneDNN, which torch
carries too, uses their AVX-512 and takes half the time (docs/performance.md). ``torch.ops.mkldnn._linear_pointwise``,
which Inductor's code calls, leads there; it has no gradient, so this file gives it one.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import checks
from ..dispatch import current_backend
from ..registration import is_plain_call

# Multiplications of the smallest product that oneDNN computes: below, its call costs more than it saves.
SMALLEST_PRODUCT = 2**22
# Terms that are added up in one go. Of more, oneDNN's rounding errors are up to four times MKL's; of parts of this
# length they are about twice, for 5 to 20% more time.
LONGEST_SUM = 1024


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer: ``x @ weight.T + bias``, as ``torch.nn.functional.linear``.

    Large products of float32 on a CPU with AVX-512 that is not Intel's are computed by oneDNN, about twice as fast as
    by MKL; every other call is torch's own. ``use_backend("eager")`` is always torch's own.

    Args:
        x: ``[..., K]``.
        weight: ``[N, K]``.
        bias: ``[N]``, or None.

    Returns:
        ``[..., N]``.

    Example:
        >>> linear(torch.randn(4, 8), torch.randn(16, 8)).shape
        torch.Size([4, 16])
    """
    if not _takes_onednn(x, weight, bias):
        return F.linear(x, weight, bias)
    needs_gradient = x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    if needs_gradient and torch.is_grad_enabled():
        return _Linear.apply(x, weight, bias)
    return _product(x, weight, bias)


def apply_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """Compute ``layer(x)`` by :func:`linear` if the layer is a plain ``nn.Linear``; call it if it is anything else.

    Example:
        >>> apply_linear(nn.Linear(8, 16), torch.randn(4, 8)).shape
        torch.Size([4, 16])
    """
    if checks.is_plain_linear(layer):
        return linear(x, layer.weight, layer.bias)  # type: ignore[arg-type]
    return layer(x)


def linear_add_(out: Tensor, x: Tensor, weight: Tensor) -> None:
    """Add ``x @ weight.T`` to ``out``, without a gradient.

    ``out [M, N]`` with any row stride, ``x [M, K]``, ``weight [N, K]``.
    """
    if _takes_onednn(x, weight, None):
        out.add_(_product(x, weight, None))
    else:
        out.addmm_(x, weight.t())


@cache
def onednn_is_faster() -> bool:
    """Return True if oneDNN uses AVX-512 for float32 on this CPU and MKL does not."""
    return (
        torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        and _cpu_vendor() not in ("GenuineIntel", None)
    )


def _cpu_vendor() -> str | None:
    """Read the CPU's vendor as Linux on x86 names it; None elsewhere."""
    try:
        with Path("/proc/cpuinfo").open() as lines:
            return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), None)
    except OSError:
        return None


def _takes_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        not torch.compiler.is_compiling()
        and onednn_is_faster()
        and x.device.type == "cpu"
        and is_plain_call((x, weight, bias))
        and x.dtype == weight.dtype == torch.float32
        and weight.dim() == 2
        and x.dim() >= 2
        and (bias is None or _is_bias(bias, weight.shape[0]))
        and x.shape[-1] == weight.shape[1]
        and x.numel() * weight.shape[0] >= SMALLEST_PRODUCT
        and weight.is_contiguous()
        and current_backend() in ("auto", "cpp")
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
    )


def _is_bias(bias: Tensor, size: int) -> bool:
    return bias.dtype == torch.float32 and bias.shape == (size,) and bias.is_contiguous()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute ``x @ weight.T + bias`` by oneDNN, with long sums in parts: see :data:`LONGEST_SUM`."""
    K = weight.shape[1]
    parts = -(-K // LONGEST_SUM)
    if parts <= 1:
        return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    count = -(-K // parts)
    rows = x.reshape(-1, K)
    out = _product(_columns(rows, 0, count), _columns(weight, 0, count), bias)
    for first in range(count, K, count):
        part = _columns(rows, first, count), out, _columns(weight, first, count)
        out = torch.ops.mkldnn._linear_pointwise.binary(*part, None, "add")
    return out.view(*x.shape[:-1], len(weight))


def _columns(x: Tensor, first: int, count: int) -> Tensor:
    """Return up to ``count`` columns, dense: oneDNN takes hundreds of times as long for others."""
    part = x[:, first : first + count]
    return part if part.t().is_contiguous() else part.contiguous()


class _Linear(torch.autograd.Function):
    """Products of the gradients by oneDNN as well. They can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grad.reshape(math.prod(grad.shape[:-1]), grad.shape[-1])  # [M, N]
        dx = _matmul(rows, weight).view(x.shape) if needs_x else None
        dweight = _weight_gradient(rows, x.reshape(-1, x.shape[-1])) if needs_weight else None
        return dx, dweight, rows.sum(0) if needs_bias else None


def _weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Compute ``grad.T @ x`` ``[N, K]`` of ``[M, N]`` and ``[M, K]``.

    The result with the longer rows is up to twice as fast.
    """
    if grad.shape[1] <= x.shape[1]:
        return _matmul(grad.t(), x)
    return _matmul(x.t(), grad).t()


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """Compute ``a @ b`` for a gradient: by oneDNN unless something other than autograd acts on the call."""
    plain = is_plain_call((a, b)) and not torch.is_autocast_enabled("cpu")
    if not plain or not (_is_dense_matrix(a) and _is_dense_matrix(b)):
        return a @ b
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
        return _Linear.apply(a, b.t(), None)
    return _product(a, b.t(), None)


def _is_dense_matrix(x: Tensor) -> bool:
    return x.is_contiguous() or x.t().is_contiguous()
