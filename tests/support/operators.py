"""One small call of every operator, for the rules that hold for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dimr_kernels import functional as F

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Example:
    function: Callable[..., Any]
    make_inputs: Callable[[torch.device, torch.dtype], Inputs]
    fused: str
    """The backend of its fused form; "auto" where torch's own kernels are the fused form."""


def _random(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape).to(device, dtype).requires_grad_()


def _gates(device: torch.device, D: int) -> Inputs:
    names = ["p1", "p2", "p3", "p4"]
    names += [f"{kind}_gate_{part}" for kind in ("scale", "shift") for part in ("weight", "offset")]
    return {name: _random(device, torch.float32, D) for name in names}


def _td_layer_norm(device: torch.device, dtype: torch.dtype) -> Inputs:
    x, t = _random(device, dtype, 2, 5, 48), _random(device, torch.float32, 2)
    return {"x": x, "t": t, **_gates(device, 48), "residual": _random(device, dtype, 2, 5, 48)}


def _without_residual(make: Callable[[torch.device, torch.dtype], Inputs]) -> Callable[..., Inputs]:
    return lambda device, dtype: {k: v for k, v in make(device, dtype).items() if k != "residual"}


def _td_rms_norm(device: torch.device, dtype: torch.dtype) -> Inputs:
    inputs = _td_layer_norm(device, dtype)
    return {name: inputs[name] for name in ("x", "t", "p1", "p2", "scale_gate_weight", "scale_gate_offset")}


def _td_rms_norm_with_residual(device: torch.device, dtype: torch.dtype) -> Inputs:
    return {**_td_rms_norm(device, dtype), "residual": _random(device, dtype, 2, 5, 48)}


def _geglu_linear(device: torch.device, dtype: torch.dtype) -> Inputs:
    x, weight = _random(device, dtype, 3, 5, 16), _random(device, dtype, 24, 16)
    return {"x": x, "weight": weight, "bias": _random(device, dtype, 24)}


def _depthwise_conv2d(device: torch.device, dtype: torch.dtype) -> Inputs:
    x, residual = (_random(device, dtype, 2, 5, 6, 16) for _ in range(2))
    return {
        "x": x,
        "weight": _random(device, dtype, 16, 1, 3, 3),
        "bias": _random(device, dtype, 16),
        "residual": residual,
    }


def _geglu_of_two(device: torch.device, dtype: torch.dtype) -> Inputs:
    return {"h": _random(device, dtype, 3, 5, 16), "value": _random(device, dtype, 3, 5, 16)}


def _pixel_shuffle_add(device: torch.device, dtype: torch.dtype) -> Inputs:
    return {"x": _random(device, dtype, 2, 3, 4, 32), "y": _random(device, dtype, 2, 6, 8, 8)}


def _pixel_shuffle_add_nchw(device: torch.device, dtype: torch.dtype) -> Inputs:
    return {"x": _random(device, dtype, 2, 32, 3, 4), "y": _random(device, dtype, 2, 8, 6, 8)}


def _shuffle_norm_add(device: torch.device, dtype: torch.dtype) -> Inputs:
    return {**_pixel_shuffle_add(device, dtype), "t": _random(device, torch.float32, 2), **_gates(device, 8)}


def _td_group_norm(device: torch.device, dtype: torch.dtype) -> Inputs:
    return {"x": _random(device, dtype, 2, 5, 16), "t": _random(device, torch.float32, 2), **_gates(device, 16)}


EXAMPLES = {
    "td_layer_norm": Example(F.td_layer_norm, _td_layer_norm, "triton"),
    "td_rms_norm": Example(F.td_rms_norm, _td_rms_norm, "triton"),
    "td_group_norm": Example(lambda **inputs: F.td_group_norm(num_groups=4, **inputs), _td_group_norm, "triton"),
    "geglu_linear": Example(F.geglu_linear, _geglu_linear, "triton"),
    "geglu": Example(F.geglu, lambda device, dtype: {"h": _random(device, dtype, 3, 5, 32)}, "triton"),
    "depthwise_conv2d": Example(F.depthwise_conv2d, _depthwise_conv2d, "triton"),
    "pixel_shuffle_add": Example(lambda x, y: F.pixel_shuffle_add(x, y, upscale_factor=2), _pixel_shuffle_add, "cuda"),
    "pixel_unshuffle": Example(
        lambda x: F.pixel_unshuffle(x, 2), lambda device, dtype: {"x": _random(device, dtype, 2, 6, 8, 8)}, "cuda"
    ),
    "pixel_shuffle_td_norm_add": Example(
        lambda **inputs: F.pixel_shuffle_td_norm_add(upscale_factor=2, **inputs), _shuffle_norm_add, "triton"
    ),
    "attention": Example(
        F.attention,
        lambda device, dtype: {name: _random(device, dtype, 2, 3, 9, 16) for name in ("q", "k", "v")},
        "auto",
    ),
}


def in_cpp(examples: dict[str, Example]) -> dict[str, Example]:
    """The examples that have a C++ form beside Triton's, in it."""
    return {f"{name} in C++": replace(x, fused="cpp") for name, x in examples.items() if x.fused == "triton"}


VARIANTS = {
    "td_layer_norm without residual": Example(F.td_layer_norm, _without_residual(_td_layer_norm), "triton"),
    "td_rms_norm with residual": Example(F.td_rms_norm, _td_rms_norm_with_residual, "triton"),
    "geglu of two tensors": Example(F.geglu, _geglu_of_two, "triton"),
    "depthwise_conv2d without residual": Example(F.depthwise_conv2d, _without_residual(_depthwise_conv2d), "triton"),
    "pixel_shuffle_add, nchw": Example(
        lambda x, y: F.pixel_shuffle_add(x, y, 2, layout="nchw"), _pixel_shuffle_add_nchw, "cuda"
    ),
}
"""Other forms of these calls, which take another way through the operator or use another one."""

HALF_PRECISION_ONLY = {
    "geglu_linear in one kernel": Example(
        partial(F.geglu_linear, form="one_kernel"), lambda device, dtype: _geglu_linear(device, torch.float16), "triton"
    ),
}
