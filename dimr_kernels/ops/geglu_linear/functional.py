"""The public function: checks, and which form runs."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import checks
from ...dispatch import BackendError, choose, current_backend, why_unavailable
from ...rows import as_rows, with_rows_of
from ..geglu import op as geglu_op
from . import eager, op

FUSED_FORMS = {"geglu_linear": "triton"}


def geglu_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    approximate: str = "none",
    gate: str = "first",
    form: str = "auto",
) -> Tensor:
    """A linear layer with gated GELU: ``geglu(x @ weight.T + bias)`` (Shazeer 2020, eq. (5)'s GEGLU; DiMR's MLP).

    Args:
        x: ``[..., K]``.
        weight: ``[2N, K]`` as in ``torch.nn.Linear``, gate and value one after the other; in ``x``'s dtype, but for
            autocast, which casts both as it does for any linear layer.
        bias: ``[2N]`` in any floating-point dtype, or None.
        approximate: "none" is the exact erf, "tanh" the usual approximation.
        gate: which half of the projection is the gate, "first" or "last".
        form: how it is computed where Triton runs.
            "two_kernels": torch's matrix product, then the fused GeGLU. The product stays for the backward.
            "one_kernel": GeGLU in the epilogue of a matrix product; float16 and bfloat16 only (float32 products are
            torch's, which follow its ``allow_tf32``). Less memory, but the backward computes the product again.
            "auto": one kernel where no gradient is wanted and it was measured to be faster, else two.

    ``use_backend("eager")`` computes the definition, whatever the form.

    Returns:
        ``[..., N]`` in ``x``'s dtype, or autocast's. Sums and the gate are float32; in two kernels the projection is
        rounded to the result's dtype in between.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit.
        BackendError: the implementation or the form asked for cannot run; the message says why.

    Example:
        >>> x, weight = torch.randn(4, 8), torch.randn(2 * 16, 8)
        >>> geglu_linear(x, weight).shape
        torch.Size([4, 16])
    """
    operator = "geglu_linear"
    checks.check_choice(operator, "approximate", approximate, ("none", "tanh"))
    checks.check_choice(operator, "gate", gate, ("first", "last"))
    checks.check_choice(operator, "form", form, op.FORMS)
    _check_linear(operator, x, weight, bias)
    cast = checks.autocast_dtype(x)
    if cast is None:
        checks.check_same_dtype(operator, x=x, weight=weight)
    gate_first = gate == "first"
    if form == "one_kernel" and current_backend() != "eager":
        _require_one_kernel(operator, x, cast or x.dtype)
    elif choose(operator, x, "triton") == "eager":
        return eager.geglu_linear(x, weight, bias, approximate, gate_first)
    elif form == "two_kernels" or _needs_gradient(x, weight, bias) or not op.wins(x, weight):
        h = eager.project(x, weight, bias)
        return with_rows_of(x, geglu_op.geglu_packed(as_rows(h), approximate, gate_first))
    if cast is not None:
        x, weight = x.to(cast), weight.to(cast)
    return with_rows_of(x, op.geglu_linear(as_rows(x), weight, bias, approximate, gate_first))


def _check_linear(operator: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    checks.check_floating(operator, x=x, weight=weight, bias=bias)
    checks.check_rank(operator, "weight", weight, 2, "[2N, K]")
    if x.dim() == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{operator}: x must have shape [..., {weight.shape[1]}], the width of weight {list(weight.shape)}; got "
            f"{list(x.shape)}"
        )
    if weight.shape[0] % 2:
        raise ValueError(f"{operator}: weight must have an even number of rows [2N, K], got {list(weight.shape)}")
    if bias is not None:
        checks.check_shape(operator, "bias", bias, (weight.shape[0],))
    checks.check_same_device(operator, x=x, weight=weight, bias=bias)


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _require_one_kernel(operator: str, x: Tensor, dtype: torch.dtype) -> None:
    problem = why_unavailable("triton", x.device, dtype)
    if dtype not in op.ONE_KERNEL_DTYPES:
        problem = f"it takes float16 or bfloat16, not {dtype}, whose products are torch's (form 'two_kernels')"
    if current_backend() == "cuda":
        problem = "backend 'cuda' was asked for, and it is a Triton kernel"
    if problem is not None:
        raise BackendError(f"{operator}: form 'one_kernel' was asked for and cannot run: {problem}")
