"""Depthwise convolution of channels-last feature maps, ``conv(x) + bias + residual``, stride 1, same padding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import checks
from ..dispatch import choose, is_exporting
from ..registration import Operator, cpp_kernel, define_forms, define_gradients


def depthwise_conv2d_definition(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """Depthwise convolution in plain PyTorch: ``x [B, H, W, C]``, ``weight [C, 1, K, K]`` -> ``[B, H, W, C]``.

    The permuted view of a contiguous NHWC tensor is torch's channels_last format, so nothing is copied.
    """
    bias = None if bias is None else bias.to(x.dtype)
    weight = weight.to(x.dtype)
    channels, _, kernel_size, _ = weight.shape
    out = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=kernel_size // 2, groups=channels)
    out = out.permute(0, 2, 3, 1)
    return out if residual is None else out + residual


def _is_compiled_with_gradients() -> bool:
    """Return True under torch.compile, but not in torch.export, whose programs keep the definition as it is."""
    return torch.compiler.is_dynamo_compiling() and not is_exporting() and torch.is_grad_enabled()


def _recomputed_definition(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """Compute the definition so that compiled code saves x for the backward and not the permuted view of it.

    Inductor cannot order the strides of a saved view that are symbols (torch 2.13: "cannot determine truth value of
    Relational"), so a second image size failed. Only the view is computed again: the backward needs no more.
    """
    from torch.utils.checkpoint import checkpoint

    return checkpoint(
        depthwise_conv2d_definition, x, weight, bias, residual, use_reentrant=False, preserve_rng_state=False
    )


def depthwise_conv2d_into_definition(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Write ``conv(x) + bias + x`` into ``out``; all ``[B, H, W, C]``."""
    torch.add(depthwise_conv2d_definition(x, weight, bias, None), x, out=out)


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """Depthwise convolution of a channels-last feature map, stride 1, same padding: ``conv(x) + bias + residual``.

    Args:
        x: ``[B, H, W, C]``.
        weight: ``[C, 1, K, K]``, torch's layout, K one of 3, 5, 7.
        bias: ``[C]``, or None.
        residual: ``[B, H, W, C]`` in ``x``'s dtype, added to the result; it costs nothing where it is ``x`` itself.

    ``weight`` and ``bias`` may have another dtype than ``x``; each gradient has its own tensor's. Sums are float32.
    Taps beyond the edge read zeros. Zero times an infinite weight or gradient is NaN there in one form and left out in
    the other; eager and fused differ in nothing else.

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
    form = choose(operator, x)
    if form == "eager":
        if _is_compiled_with_gradients():
            return _recomputed_definition(x, weight, bias, residual)
        return depthwise_conv2d_definition(x, weight, bias, residual)
    return depthwise_conv2d_ops[form](x, weight, bias, None if residual_is_x else residual, residual_is_x)


class DepthwiseConv2d(nn.Module):
    """Depthwise convolution of channels-last feature maps, stride 1, same padding, with an optional residual.

    Args:
        channels: C.
        kernel_size: 3, 5 or 7.
        bias: give the convolution a bias.

    The parameters have the names, shapes and initial distribution of ``nn.Conv2d(C, C, K, padding=K // 2, groups=C)``,
    so that its state dict loads.

    Shape: ``[B, H, W, C]`` -> ``[B, H, W, C]``; ``residual``, of the same shape, is added to the result.

    Example:
        >>> conv = DepthwiseConv2d(16, kernel_size=7)
        >>> _ = conv.load_state_dict(nn.Conv2d(16, 16, 7, padding=3, groups=16).state_dict())
        >>> conv(torch.randn(2, 8, 8, 16)).shape
        torch.Size([2, 8, 8, 16])
    """

    def __init__(self, channels: int, kernel_size: int = 7, bias: bool = True) -> None:
        super().__init__()
        if kernel_size not in (3, 5, 7):
            raise ValueError(f"DepthwiseConv2d: kernel_size must be 3, 5 or 7, got {kernel_size!r}")
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel_size, kernel_size))
        self.bias: nn.Parameter | None = nn.Parameter(torch.empty(channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = self.weight[0].numel() ** -0.5  # torch's Conv2d: Kaiming with a = sqrt(5), fan in K * K
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return depthwise_conv2d(x, self.weight, self.bias, residual)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, kernel_size={self.weight.shape[-1]}, bias={self.bias is not None}"


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, add_input: bool) -> Tensor:
    from . import depthwise_conv_triton as kernels

    return kernels.forward(x, weight, bias, residual, add_input)


def _backward(
    grad: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    kernel_size: int,
    add_input: bool,
    weight_dtype: torch.dtype,
    bias_dtype: torch.dtype,
) -> list[Tensor]:
    from . import depthwise_conv_triton as kernels

    found = [] if weight is None else [kernels.forward(grad, weight, None, None, add_input, flip=True)]
    if x is not None:
        found.extend(kernels.weight_gradient(grad, x, kernel_size, weight_dtype, bias_dtype))
    return found


def _fake_backward(
    grad: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    kernel_size: int,
    add_input: bool,
    weight_dtype: torch.dtype,
    bias_dtype: torch.dtype,
) -> list[Tensor]:
    C = grad.shape[3]
    found = [] if weight is None else [grad.new_empty(grad.shape)]
    if x is not None:
        found.append(grad.new_empty((C, 1, kernel_size, kernel_size), dtype=weight_dtype))
        found.append(grad.new_empty((C,), dtype=bias_dtype))
    return found


Shape = Sequence[int]


def _flops(x: Shape, weight: Shape, *rest: Any, **results: Any) -> int:
    return 2 * math.prod(x) * math.prod(weight[1:])


def _backward_flops(
    grad: Shape, x: Shape | None, weight: Shape | None, kernel_size: int, *rest: Any, **results: Any
) -> int:
    gradients = (x is not None) + (weight is not None)
    return gradients * 2 * math.prod(grad) * kernel_size**2


depthwise_conv2d_ops = define_forms(
    "depthwise_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, bool add_input) -> Tensor",
    kernels={"triton": _forward, "cpp": cpp_kernel("depthwise_conv2d_cpp")},
    fake=lambda x, weight, bias, residual, add_input: x.new_empty(x.shape),
    flops=_flops,
)
# The gradient of x where the weight is given, and those of weight and bias where x is given.
depthwise_conv2d_backward_ops = define_forms(
    "depthwise_conv2d_backward(Tensor grad, Tensor? x, Tensor? weight, int kernel_size, bool add_input, "
    "ScalarType weight_dtype, ScalarType bias_dtype) -> Tensor[]",
    kernels={"triton": _backward, "cpp": cpp_kernel("depthwise_conv2d_cpp_backward")},
    fake=_fake_backward,
    flops=_backward_flops,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, _, ctx.add_input = inputs
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    ctx.kernel_size, ctx.weight_dtype = weight.shape[3], weight.dtype
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)


def _gradient(backward: Operator, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    needs_x, needs_weight, needs_bias, needs_residual, _ = ctx.needs_input_grad
    dx = dweight = dbias = None
    if needs_x or needs_weight:
        dtypes = ctx.weight_dtype, ctx.bias_dtype or torch.float32
        found = iter(backward(grad, x, weight, ctx.kernel_size, ctx.add_input, *dtypes))
        dx = next(found) if needs_x else None
        dweight, dbias = found if needs_weight else (None, None)
    if needs_bias and not needs_weight:
        dbias = grad.sum((0, 1, 2), dtype=torch.float32).to(ctx.bias_dtype)
    return dx, dweight, dbias if needs_bias else None, grad if needs_residual else None, None


define_gradients(
    "depthwise_conv2d", depthwise_conv2d_ops, depthwise_conv2d_backward_ops, setup_context=_save, backward=_gradient
)


def _forward_into(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    from . import depthwise_conv_triton as kernels

    if out.shape[2] == 1:  # its stride says nothing
        out = out.as_strided(out.shape, (*out.stride()[:2], out.stride(1), 1))
    kernels.forward(x, weight, bias, None, add_input=True, out=out)


_depthwise_conv2d_cpp_ = cpp_kernel("depthwise_conv2d_cpp_")


def _cpp_forward_into(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    _depthwise_conv2d_cpp_(x, weight, bias, True, out)  # True: add x


depthwise_conv2d_into_ops = define_forms(
    "depthwise_conv2d_into(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) out) -> ()",
    kernels={"triton": _forward_into, "cpp": _cpp_forward_into},
    fake=lambda x, weight, bias, out: None,
    flops=_flops,
)
