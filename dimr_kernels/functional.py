"""Stateless operators. Each checks its arguments, then runs its fused form or its eager definition (``dispatch``)."""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks, shuffle_checks, time_checks
from .dispatch import choose, current_backend
from .linear import geglu_linear as geglu_linear
from .ops.attention import run as attention_run
from .ops.depthwise_conv import eager as depthwise_conv_eager
from .ops.depthwise_conv import op as depthwise_conv_op
from .ops.geglu import eager as geglu_eager
from .ops.geglu import op as geglu_op
from .ops.pixel_shuffle import eager as pixel_shuffle_eager
from .ops.pixel_shuffle import op as pixel_shuffle_op
from .ops.shuffle_norm_add import eager as shuffle_norm_add_eager
from .ops.shuffle_norm_add import op as shuffle_norm_add_op
from .ops.td_norm import eager as td_norm_eager
from .ops.td_norm import op as td_norm_op


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
            return geglu_eager.geglu_packed(h, approximate, gate_first)
        return geglu_op.geglu_packed(h, approximate, gate_first)
    checks.check_shape("geglu", "value", value, tuple(h.shape))
    checks.check_same_dtype("geglu", h=h, value=value)
    checks.check_same_device("geglu", h=h, value=value)
    if not fused:
        return geglu_eager.geglu_pair(h, value, approximate)
    return geglu_op.geglu_pair(h, value, approximate)


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
    """
    checks.check_choice("attention", "backend", backend, attention_run.BACKENDS)
    checks.check_floating("attention", q=q, k=k, v=v)
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        checks.check_rank("attention", name, tensor, 4, "[B, heads, L, head_dim]")
    if q.shape[3] == 0:
        raise ValueError(f"attention: q must have a positive head_dim, got shape {list(q.shape)}")
    checks.check_shape("attention", "k", k, (q.shape[0], q.shape[1], k.shape[2], q.shape[3]))
    checks.check_shape("attention", "v", v, (q.shape[0], q.shape[1], k.shape[2], v.shape[3]))
    checks.check_same_device("attention", q=q, k=k, v=v)
    dtype = checks.autocast_dtype(q)
    if dtype is not None:
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    checks.check_same_dtype("attention", q=q, k=k, v=v)
    if backend == "auto" and current_backend() == "eager":
        backend = "eager"
    return attention_run.attention(q, k, v, backend, q.shape[3] ** -0.5 if scale is None else scale)


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """Depthwise convolution of a channels-last feature map, stride 1, same padding: ``conv(x) + bias + residual``.

    Args:
        x: ``[B, H, W, C]``.
        weight: ``[C, 1, K, K]``, torch's layout, K one of 3, 5, 7.
        bias: ``[C]``, or None.
        residual: ``[B, H, W, C]`` in ``x``'s dtype, added to the result; it costs nothing where it is ``x`` itself.

    ``weight`` and ``bias`` may have another dtype than ``x``; each gradient has its own tensor's. Sums are float32.

    Returns:
        ``[B, H, W, C]`` in ``x``'s dtype. Under autocast without a residual ``x`` is cast first, as for torch's
        convolutions; with one the sum keeps the residual's precision, as ``conv(x) + residual`` would.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit.
        BackendError: the implementation asked for cannot run (see :func:`dimr_kernels.use_backend`).
    """
    operator = "depthwise_conv2d"
    checks.check_floating(operator, x=x, weight=weight, bias=bias, residual=residual)
    checks.check_rank(operator, "x", x, 4, "[B, H, W, C]")
    checks.check_rank(operator, "weight", weight, 4, "[C, 1, K, K]")
    channels, kernel_size = x.shape[3], weight.shape[3]
    checks.check_choice(operator, "weight's kernel size", kernel_size, (3, 5, 7))
    checks.check_shape(operator, "weight", weight, (channels, 1, kernel_size, kernel_size))
    if 0 in x.shape[1:]:
        raise ValueError(f"{operator}: x must have positive H, W and C, got shape {list(x.shape)}")
    if bias is not None:
        checks.check_shape(operator, "bias", bias, (channels,))
    if residual is not None:
        checks.check_shape(operator, "residual", residual, tuple(x.shape))
    checks.check_same_device(operator, x=x, weight=weight, bias=bias, residual=residual)
    residual_is_x = residual is x
    dtype = checks.autocast_dtype(x)
    if dtype is not None:
        if residual is None:
            x = x.to(dtype)
        elif not residual_is_x:
            wide = torch.promote_types(x.dtype, residual.dtype)
            x, residual = x.to(wide), residual.to(wide)
    checks.check_same_dtype(operator, x=x, residual=residual)
    if choose(operator, x, "triton") == "eager":
        return depthwise_conv_eager.depthwise_conv2d(x, weight, bias, residual)
    return depthwise_conv_op.depthwise_conv2d(x, weight, bias, None if residual_is_x else residual, residual_is_x)


def pixel_shuffle_add(x: Tensor, y: Tensor | None, upscale_factor: int, layout: str = "nhwc") -> Tensor:
    """``y + shuffle(x)``, the sum of a cascade (DiMR eq. (2)); the shuffle is Shi et al. 2016's.

    Args:
        x: layout "nhwc": ``[B, H, W, r*r*C]`` with channels in ``(r, r, C)`` order; "nchw": ``[B, C*r*r, H, W]`` in
            torch's ``(C, r, r)`` order, contiguous or channels last in memory.
        y: "nhwc": ``[B, r*H, r*W, C]``; "nchw": ``[B, C, r*H, r*W]``; None for the shuffle alone.
        upscale_factor: ``r >= 1``.
        layout: "nhwc" or "nchw".

    Returns:
        y's shape, in the dtype that torch's promotion gives ``x`` and ``y``; channels last in memory where ``x`` is.
        Differentiable any number of times.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit.
        BackendError: the implementation asked for cannot run (see :func:`dimr_kernels.use_backend`).
    """
    operator = "pixel_shuffle_add"
    r = shuffle_checks.check_shuffle(operator, x, "upscale_factor", upscale_factor, layout)
    shuffle_checks.check_shuffled(operator, x, y, r, layout)
    if y is not None:
        dtype = torch.promote_types(x.dtype, y.dtype)
        x, y = x.to(dtype), y.to(dtype)
    if choose(operator, x, "cuda") == "eager":
        return pixel_shuffle_eager.pixel_shuffle_add(x, y, r, layout)
    return pixel_shuffle_op.pixel_shuffle_add(x, y, r, _memory_layout(x, layout))


def pixel_unshuffle(x: Tensor, downscale_factor: int, layout: str = "nhwc") -> Tensor:
    """The inverse of the shuffle in :func:`pixel_shuffle_add`.

    Args:
        x: layout "nhwc": ``[B, r*H, r*W, C]``; "nchw": ``[B, C, r*H, r*W]``, contiguous or channels last in memory.
        downscale_factor: ``r >= 1``.
        layout: "nhwc" gives ``[B, H, W, r*r*C]`` in ``(r, r, C)`` order, "nchw" gives ``[B, C*r*r, H, W]`` in torch's.

    Raises as :func:`pixel_shuffle_add`.
    """
    operator = "pixel_unshuffle"
    r = shuffle_checks.check_shuffle(operator, x, "downscale_factor", downscale_factor, layout)
    H, W = x.shape[1:3] if layout == "nhwc" else x.shape[2:]
    if H % r or W % r:
        raise ValueError(
            f"{operator}: x must have height and width that are multiples of downscale_factor {r}, got {H} x {W} in "
            f"shape {list(x.shape)}, layout {layout!r}"
        )
    if choose(operator, x, "cuda") == "eager":
        return pixel_shuffle_eager.pixel_unshuffle(x, r, layout)
    return pixel_shuffle_op.pixel_unshuffle(x, r, _memory_layout(x, layout))


def _memory_layout(x: Tensor, layout: str) -> str:
    """ "nchw" splits by the memory that ``x`` has."""
    if layout == "nhwc" or x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return layout
    return "channels_last"


def td_layer_norm(
    x: Tensor,
    t: Tensor | float,
    p1: Tensor,
    p2: Tensor,
    p3: Tensor | None,
    p4: Tensor | None,
    scale_gate_weight: Tensor,
    scale_gate_offset: Tensor,
    shift_gate_weight: Tensor | None,
    shift_gate_offset: Tensor | None,
    eps: float = 1e-5,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Time-dependent layer norm (DiMR eq. (4) and (5)): ``LN(x) * gamma(t) + beta(t)`` over the last dimension.

    ``gamma = s p1 + (1 - s) p2`` with ``s = sigmoid(scale_gate_weight * t + scale_gate_offset)``; ``beta`` likewise
    from ``p3, p4`` and the shift gate.

    Args:
        x: ``[B, ..., D]``; ``[D]`` is one sample.
        t: ``[B]``, or one value for the batch: ``[1]``, ``[]`` or a float. Differentiable. NaN is refused in numbers
            and CPU tensors; on a GPU looking would wait for it, so there it reaches the result.
        p1, p2: ``[D]``, the scale where the gate is open and where it is shut.
        p3, p4: ``[D]``, the shift likewise; None, with the shift gate, for no shift.
        scale_gate_weight, scale_gate_offset, shift_gate_weight, shift_gate_offset: ``[D]`` (a gate per channel) or
            ``[1]``.
        eps: added to the variance.
        residual: x's shape, in x's dtype or another one; added before the norm.

    Parameters and ``t`` may have another dtype than ``x``; each gradient has its own tensor's. Statistics are float32
    (float64 for float64 inputs).

    Returns:
        The norm in x's shape and dtype; with ``residual``, the pair ``(norm(x + residual), x + residual)``, both
        differentiable.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit, or ``t`` is NaN.
        BackendError: the implementation asked for cannot run (see :func:`dimr_kernels.use_backend`).
    """
    missing = (p3 is None) + (p4 is None) + (shift_gate_weight is None) + (shift_gate_offset is None)
    if missing not in (0, 4):
        raise ValueError(
            "td_layer_norm: p3, p4, shift_gate_weight and shift_gate_offset must all be given or all be None"
        )
    return _td_norm(
        "td_layer_norm", x, t, p1, p2, p3, p4, scale_gate_weight, scale_gate_offset, shift_gate_weight,
        shift_gate_offset, eps, residual, rms=False,
    )  # fmt: skip


def td_rms_norm(
    x: Tensor,
    t: Tensor | float,
    p1: Tensor,
    p2: Tensor,
    scale_gate_weight: Tensor,
    scale_gate_offset: Tensor,
    eps: float = 1e-8,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Time-dependent RMS norm: ``gamma(t) * x / (sqrt(mean(x^2)) + eps)``, eps outside the root, no shift.

    Arguments, results and errors as for :func:`td_layer_norm`.
    """
    return _td_norm(
        "td_rms_norm", x, t, p1, p2, None, None, scale_gate_weight, scale_gate_offset, None, None, eps, residual,
        rms=True,
    )  # fmt: skip


def _td_norm(
    operator: str,
    x: Tensor,
    t: Tensor | float,
    p1: Tensor,
    p2: Tensor,
    p3: Tensor | None,
    p4: Tensor | None,
    scale_gate_weight: Tensor,
    scale_gate_offset: Tensor,
    shift_gate_weight: Tensor | None,
    shift_gate_offset: Tensor | None,
    eps: float,
    residual: Tensor | None,
    rms: bool,
) -> Tensor | tuple[Tensor, Tensor]:
    checks.check_floating(operator, x=x, residual=residual)
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"{operator}: x must have shape [B, ..., D] with D >= 1, got {list(x.shape)}")
    if residual is not None and (residual.shape, residual.dtype, residual.device) != (x.shape, x.dtype, x.device):
        _check_residual(operator, x, residual)
    D = x.shape[-1]
    time_checks.check_gated_pair(
        operator, D, x.device, p1=p1, p2=p2, scale_gate_weight=scale_gate_weight, scale_gate_offset=scale_gate_offset
    )
    if p3 is not None:
        time_checks.check_gated_pair(
            operator, D, x.device, p3=p3, p4=p4, shift_gate_weight=shift_gate_weight,
            shift_gate_offset=shift_gate_offset,
        )  # fmt: skip
    single = x.dim() == 1
    if single:
        x, residual = x[None], None if residual is None else residual[None]
    t = time_checks.as_timesteps(operator, t, x)
    norm = td_norm_op.td_norm if choose(operator, x, "triton") == "triton" else td_norm_eager.td_norm
    y, total = norm(
        x, residual, t, p1, p2, p3, p4, scale_gate_weight, scale_gate_offset, shift_gate_weight, shift_gate_offset,
        eps, rms,
    )[:2]  # fmt: skip
    if single:
        y, total = y[0], total[0]
    return y if residual is None else (y, total)


def _check_residual(operator: str, x: Tensor, residual: Tensor) -> None:
    checks.check_shape(operator, "residual", residual, tuple(x.shape))
    checks.check_same_device(operator, x=x, residual=residual)
    if (x.dtype == torch.float64) != (residual.dtype == torch.float64):
        raise TypeError(f"{operator}: residual has dtype {residual.dtype}, x has {x.dtype}: float64 does not mix")


def pixel_shuffle_td_norm_add(
    x: Tensor,
    y: Tensor,
    t: Tensor | float,
    upscale_factor: int,
    p1: Tensor,
    p2: Tensor,
    p3: Tensor,
    p4: Tensor,
    scale_gate_weight: Tensor,
    scale_gate_offset: Tensor,
    shift_gate_weight: Tensor,
    shift_gate_offset: Tensor,
    eps: float = 1e-5,
) -> Tensor:
    """The cascade's way up: ``y + TDLN(shuffle(x))`` in one pass (DiMR eq. (2), (4) and (5)), channels last.

    Args:
        x: ``[B, H, W, r*r*C]`` with channels in ``(r, r, C)`` order.
        y: ``[B, r*H, r*W, C]``; its dtype may differ from x's.
        upscale_factor: ``r >= 1``.
        t, p1, p2, p3, p4, the gates, eps: as for :func:`td_layer_norm`, of width C.

    Rows wider than 8192 channels are shuffled, normalized and added in three passes.

    Returns:
        ``[B, r*H, r*W, C]`` in the dtype that torch's promotion gives ``x`` and ``y``.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit, or ``t`` is NaN.
        BackendError: the implementation asked for cannot run (see :func:`dimr_kernels.use_backend`).
    """
    operator = "pixel_shuffle_td_norm_add"
    r = shuffle_checks.check_shuffle(operator, x, "upscale_factor", upscale_factor, "nhwc")
    C = shuffle_checks.check_shuffled(operator, x, y, r, "nhwc")
    if C == 0:
        raise ValueError(f"{operator}: x must have at least one channel, got shape {list(x.shape)}")
    if (x.dtype == torch.float64) != (y.dtype == torch.float64):
        raise TypeError(f"{operator}: y has dtype {y.dtype}, x has {x.dtype}: float64 does not mix")
    scale = {"p1": p1, "p2": p2, "scale_gate_weight": scale_gate_weight, "scale_gate_offset": scale_gate_offset}
    shift = {"p3": p3, "p4": p4, "shift_gate_weight": shift_gate_weight, "shift_gate_offset": shift_gate_offset}
    time_checks.check_gated_pair(operator, C, x.device, **scale)
    time_checks.check_gated_pair(operator, C, x.device, **shift)
    t = time_checks.as_timesteps(operator, t, x)
    gates = (p1, p2, p3, p4, scale_gate_weight, scale_gate_offset, shift_gate_weight, shift_gate_offset)
    if choose(operator, x, "triton") == "eager":
        return shuffle_norm_add_eager.shuffle_norm_add(x, y, t, r, *gates, eps)
    if not shuffle_norm_add_op.fits(y):
        return y + td_norm_op.td_norm(pixel_shuffle_eager.pixel_shuffle(x, r, "nhwc"), None, t, *gates, eps, False)[0]
    return shuffle_norm_add_op.shuffle_norm_add(x, y, t, r, *gates, eps)[0]
