"""Gated linear unit with GELU, ``gelu(gate) * value``, by itself and behind a linear layer (Shazeer 2020)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import checks
from ..dispatch import BackendError, choose, current_backend, unavailable_reason
from ..launch import with_even_rows
from ..registration import Operator, cpp_kernel, define_forms, define_gradient, define_gradients, define_op
from .linear import apply_linear, linear

FORMS = ("auto", "one_kernel", "two_kernels")
ONE_KERNEL_DTYPES = (torch.float16, torch.bfloat16)


def split_packed(h: Tensor, gate_first: bool) -> tuple[Tensor, Tensor]:
    """Split ``h [..., 2D]`` into views ``(gate, value)``, both ``[..., D]``."""
    first, second = h.chunk(2, dim=-1)
    return (first, second) if gate_first else (second, first)


def geglu_pair_definition(gate: Tensor, value: Tensor, approximate: str) -> Tensor:
    """GeGLU in plain PyTorch."""
    return F.gelu(gate, approximate=approximate) * value


def geglu_packed_definition(h: Tensor, approximate: str, gate_first: bool) -> Tensor:
    """GeGLU in plain PyTorch, of gate and value side by side."""
    gate, value = split_packed(h, gate_first)
    return geglu_pair_definition(gate, value, approximate)


def project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute ``x @ weight.T + bias``; a bias of another dtype is cast, autocast casts all three."""
    return F.linear(x, weight, None if bias is None else bias.to(weight.dtype))


def geglu_linear_definition(
    x: Tensor, weight: Tensor, bias: Tensor | None, approximate: str, gate_first: bool
) -> Tensor:
    """A linear layer with GeGLU in plain PyTorch."""
    return geglu_packed_definition(project(x, weight, bias), approximate, gate_first)


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
    form = choose("geglu", h)
    if value is None:
        if h.shape[-1] % 2:
            raise ValueError(f"geglu: h must have an even last dimension [..., 2D], got shape {list(h.shape)}")
        gate_first = gate == "first"
        packed = geglu_packed_definition if form == "eager" else geglu_packed_ops[form]
        return packed(h, approximate, gate_first)
    checks.check_shape("geglu", "value", value, tuple(h.shape))
    checks.check_same_dtype("geglu", h=h, value=value)
    checks.check_same_device("geglu", h=h, value=value)
    pair = geglu_pair_definition if form == "eager" else geglu_pair_ops[form]
    return pair(h, value, approximate)


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
        form: computation of the fused forms.
            "two_kernels": torch's matrix product, then the fused GeGLU. The product stays for the backward.
            "one_kernel": GeGLU in the epilogue of a matrix product; float16 and bfloat16 only (float32 products are
            torch's, which follow its ``allow_tf32``). Less memory, but the backward computes the product again.
            "auto": two kernels; no measurement shows one to be faster.

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
    checks.check_choice(operator, "form", form, FORMS)
    _check_linear(operator, x, weight, bias)
    cast = checks.autocast_dtype(x)
    if cast is None:
        checks.check_same_dtype(operator, x=x, weight=weight)
    gate_first = gate == "first"
    if form == "one_kernel" and current_backend() != "eager":
        _require_one_kernel(operator, x, cast or x.dtype)
        if cast is not None:
            x, weight = x.to(cast), weight.to(cast)
        return _with_rows_of(x, geglu_linear_op(_as_rows(x), weight, bias, approximate, gate_first))
    fused = choose(operator, x)
    if fused == "eager":
        return geglu_linear_definition(x, weight, bias, approximate, gate_first)
    h = linear(x, weight, None if bias is None else bias.to(weight.dtype))
    return _with_rows_of(x, geglu_packed_ops[fused](_as_rows(h), approximate, gate_first))


def _as_rows(x: Tensor) -> Tensor:
    """Reshape ``[..., D]`` to ``[rows, D]``, also if D is 0."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _with_rows_of(x: Tensor, out: Tensor) -> Tensor:
    """Reshape ``out [rows, N]`` to ``[..., N]`` for ``x [..., D]``."""
    return out.reshape(*x.shape[:-1], out.shape[-1])


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


def _require_one_kernel(operator: str, x: Tensor, dtype: torch.dtype) -> None:
    """Raise if the Triton kernel with GeGLU in its epilogue cannot run."""
    problem = unavailable_reason("triton", x.device, dtype)
    if dtype not in ONE_KERNEL_DTYPES:
        problem = f"it takes float16 or bfloat16, not {dtype}, whose products are torch's (form 'two_kernels')"
    if current_backend() in ("cpp", "cuda"):
        problem = f"backend {current_backend()!r} was asked for, and it is a Triton kernel"
    if problem is not None:
        raise BackendError(f"{operator}: form 'one_kernel' was asked for and cannot run: {problem}")


def project_and_gate(proj: nn.Module, x: Tensor, approximate: str, gate: str) -> Tensor:
    """Compute ``geglu(proj(x))``; a plain linear layer is part of the operator, any other projection is called."""
    if checks.is_plain_linear(proj):
        return geglu_linear(x, proj.weight, proj.bias, approximate, gate)  # type: ignore[arg-type]
    return geglu(proj(x), approximate=approximate, gate=gate)


class GEGLU(nn.Module):
    """Projection and gate: ``gelu(x W_gate + b_gate) * (x W_value + b_value)``, one matrix product for both.

    Args:
        dim_in: width of the input.
        dim_out: width of the output; the projection is twice as wide.
        bias: give the projection a bias.
        approximate: "none" (exact erf) or "tanh".
        gate: which half of the projection is the gate, "first" or "last" (other projects' order).

    Shape: ``[..., dim_in]`` -> ``[..., dim_out]``.

    Example:
        >>> import torch
        >>> GEGLU(8, 16)(torch.randn(4, 8)).shape
        torch.Size([4, 16])
    """

    def __init__(
        self, dim_in: int, dim_out: int, bias: bool = True, approximate: str = "none", gate: str = "first"
    ) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, 2 * dim_out, bias=bias)
        self.approximate = approximate
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        return project_and_gate(self.proj, x, self.approximate, self.gate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}, gate={self.gate!r}"


class GEGLUMLP(nn.Module):
    """:class:`GEGLU` and the projection back: ``[..., dim]`` -> ``[..., dim]`` through ``hidden_dim``.

    Example:
        >>> import torch
        >>> GEGLUMLP(8, hidden_dim=16)(torch.randn(4, 8)).shape
        torch.Size([4, 8])
    """

    def __init__(self, dim: int, hidden_dim: int, bias: bool = True, approximate: str = "none") -> None:
        super().__init__()
        self.geglu = GEGLU(dim, hidden_dim, bias=bias, approximate=approximate)
        self.out = nn.Linear(hidden_dim, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return apply_linear(self.out, self.geglu(x))


def _forward_pair(gate: Tensor, value: Tensor, approximate: str) -> Tensor:
    from . import geglu_triton as kernels

    return kernels.forward(with_even_rows(gate), with_even_rows(value), approximate)


def _forward_packed(h: Tensor, approximate: str, gate_first: bool) -> Tensor:
    from . import geglu_triton as kernels

    return kernels.forward(*split_packed(with_even_rows(h), gate_first), approximate)


def _backward_pair(grad: Tensor, gate: Tensor, value: Tensor, approximate: str) -> tuple[Tensor, Tensor]:
    from . import geglu_triton as kernels

    dgate, dvalue = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (gate, value))
    kernels.backward(grad, with_even_rows(gate), with_even_rows(value), dgate, dvalue, approximate)
    return dgate, dvalue


def _backward_packed(grad: Tensor, h: Tensor, approximate: str, gate_first: bool) -> Tensor:
    from . import geglu_triton as kernels

    h = with_even_rows(h)
    dh = torch.empty(h.shape, dtype=h.dtype, device=h.device)
    kernels.backward(grad, *split_packed(h, gate_first), *split_packed(dh, gate_first), approximate)
    return dh


geglu_pair_ops = define_forms(
    "geglu_pair(Tensor gate, Tensor value, str approximate) -> Tensor",
    kernels={"triton": _forward_pair, "cpp": cpp_kernel("geglu_pair_cpp")},
    fake=lambda gate, value, approximate: gate.new_empty(gate.shape),
)
geglu_pair_backward_ops = define_forms(
    "geglu_pair_backward(Tensor grad, Tensor gate, Tensor value, str approximate) -> (Tensor, Tensor)",
    kernels={"triton": _backward_pair, "cpp": cpp_kernel("geglu_pair_cpp_backward")},
    fake=lambda grad, gate, value, approximate: (gate.new_empty(gate.shape), value.new_empty(value.shape)),
)
geglu_packed_ops = define_forms(
    "geglu_packed(Tensor h, str approximate, bool gate_first) -> Tensor",
    kernels={"triton": _forward_packed, "cpp": cpp_kernel("geglu_packed_cpp")},
    fake=lambda h, approximate, gate_first: h.new_empty((*h.shape[:-1], h.shape[-1] // 2)),
)
geglu_packed_backward_ops = define_forms(
    "geglu_packed_backward(Tensor grad, Tensor h, str approximate, bool gate_first) -> Tensor",
    kernels={"triton": _backward_packed, "cpp": cpp_kernel("geglu_packed_cpp_backward")},
    fake=lambda grad, h, approximate, gate_first: h.new_empty(h.shape),
)


def _save_pair(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gate, value, ctx.approximate = inputs
    ctx.save_for_backward(gate, value)


def _save_packed(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    h, ctx.approximate, ctx.gate_first = inputs
    ctx.save_for_backward(h)


def _gradient_pair(backward: Operator, ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    dgate, dvalue = backward(grad, *ctx.saved_tensors, ctx.approximate)
    return dgate, dvalue, None


def _gradient_packed(backward: Operator, ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return backward(grad, *ctx.saved_tensors, ctx.approximate, ctx.gate_first), None, None


define_gradients("geglu", geglu_pair_ops, geglu_pair_backward_ops, setup_context=_save_pair, backward=_gradient_pair)
define_gradients(
    "geglu", geglu_packed_ops, geglu_packed_backward_ops, setup_context=_save_packed, backward=_gradient_packed
)


def _forward_linear(x: Tensor, weight: Tensor, bias: Tensor | None, approximate: str, gate_first: bool) -> Tensor:
    from . import geglu_triton as kernels

    return kernels.linear_forward(x, weight, bias, approximate, gate_first)


geglu_linear_op = define_op(
    "geglu_linear(Tensor x, Tensor weight, Tensor? bias, str approximate, bool gate_first) -> Tensor",
    kernel=_forward_linear,
    fake=lambda x, weight, bias, approximate, gate_first: x.new_empty((x.shape[0], weight.shape[0] // 2)),
    flops=lambda x, weight, *rest, **results: 2 * x[0] * weight[0] * weight[1],
)


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.approximate, ctx.gate_first = inputs
    ctx.save_for_backward(x, weight, bias)


def _gradient_linear(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Compute h again, since the forward did not keep it; then GeGLU's backward and a linear layer's products."""
    x, weight, bias = ctx.saved_tensors
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    dh = geglu_packed_backward_ops["triton"](grad, project(x, weight, bias), ctx.approximate, ctx.gate_first)  # [M, 2N]
    dx = dh @ weight if needs_x else None
    dweight = dh.t() @ x if needs_weight else None
    dbias = dh.sum(0, dtype=bias.dtype) if needs_bias else None
    return dx, dweight, dbias, None, None


define_gradient(geglu_linear_op, setup_context=_save_linear, backward=_gradient_linear)
