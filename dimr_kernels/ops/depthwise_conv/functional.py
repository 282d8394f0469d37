"""The public function: checks, and which form runs."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import checks
from ...dispatch import choose
from . import eager, op

FUSED_FORMS = {"depthwise_conv2d": "triton"}


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """Depthwise convolution of a channels-last feature map, stride 1, same padding: ``conv(x) + bias + residual``.

    Args:
        x: ``[B, H, W, C]``.
        weight: ``[C, 1, K, K]``, torch's layout, K one of 3, 5, 7.
        bias: ``[C]``, or None.
        residual: ``[B, H, W, C]`` in ``x``'s dtype, added to the result; it costs nothing where it is ``x`` itself.

    ``weight`` and ``bias`` may have another dtype than ``x``; each gradient has its own tensor's. Sums are float32.
    Taps beyond the edge read zeros. Whether zero times an infinite weight or gradient counts there, as NaN, or is left
    out differs between eager and fused; for finite numbers it makes no difference.

    Returns:
        ``[B, H, W, C]`` in ``x``'s dtype. Under autocast without a residual ``x`` is cast first, as for torch's
        convolutions; with one the sum keeps the residual's precision, as ``conv(x) + residual`` would.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit.
        BackendError: the implementation asked for cannot run (see :func:`dimr_kernels.use_backend`).

    Example:
        >>> import torch
        >>> x = torch.ones(1, 4, 4, 2)
        >>> depthwise_conv2d(x, torch.ones(2, 1, 3, 3))[0, :, :, 0]  # how many neighbours lie inside
        tensor([[4., 6., 6., 4.],
                [6., 9., 9., 6.],
                [6., 9., 9., 6.],
                [4., 6., 6., 4.]])
    """
    operator = "depthwise_conv2d"
    checks.check_floating(operator, x=x, weight=weight, bias=bias, residual=residual)
    checks.check_rank(operator, "x", x, 4, "[B, H, W, C]")
    checks.check_rank(operator, "weight", weight, 4, "[C, 1, K, K]")
    channels, kernel_size = x.shape[3], weight.shape[3]
    checks.check_choice(operator, "weight's kernel size", kernel_size, (3, 5, 7))
    if channels != weight.shape[0] == x.shape[1]:
        raise ValueError(
            f"{operator}: x must be [B, H, W, C] with the weight's {weight.shape[0]} channels last, "
            f"got [B, C, H, W] by the look of its shape {list(x.shape)}"
        )
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
        return eager.depthwise_conv2d(x, weight, bias, residual)
    return op.depthwise_conv2d(x, weight, bias, None if residual_is_x else residual, residual_is_x)
