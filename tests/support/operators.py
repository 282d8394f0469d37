"""One small call of every operator, for the rules that hold for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dimr_kernels import functional as F
from dimr_kernels.dispatch import FUSED_FORMS

Inputs = dict[str, Any]
MakeInputs = Callable[[torch.device, torch.dtype], Inputs]
SHIFT = ("p3", "p4", "shift_gate_weight", "shift_gate_offset")
GATES = ("p1", "p2", "p3", "p4", "scale_gate_weight", "scale_gate_offset", "shift_gate_weight", "shift_gate_offset")
BATCHED = {"x", "y", "t", "h", "q", "k", "v", "value", "residual"}
"""Arguments that have the batch as their first dimension."""


@dataclass(frozen=True)
class Example:
    function: Callable[..., Any]
    make_inputs: MakeInputs
    fused: str
    """The backend of its fused form; "auto" where torch's own kernels are the fused form."""


def _random(device: torch.device, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape).to(device, dtype).requires_grad_()


def _gates(device: torch.device, D: int) -> Inputs:
    return {name: _random(device, torch.float32, D) for name in GATES}


def _td_layer_norm(device: torch.device, dtype: torch.dtype) -> Inputs:
    x, t = _random(device, dtype, 2, 5, 48), _random(device, torch.float32, 2)
    return {"x": x, "t": t, **_gates(device, 48), "residual": _random(device, dtype, 2, 5, 48)}


def _without(make: MakeInputs, *names: str) -> MakeInputs:
    return lambda device, dtype: {k: v for k, v in make(device, dtype).items() if k not in names}


def _none_for(make: MakeInputs, *names: str) -> MakeInputs:
    return lambda device, dtype: make(device, dtype) | dict.fromkeys(names)


def _td_layer_norm_scalar_gates(device: torch.device, dtype: torch.dtype) -> Inputs:
    inputs = _td_layer_norm(device, dtype)
    return {k: _random(device, torch.float32, 1) if "gate" in k else v for k, v in inputs.items()}


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


def _depthwise_conv2d_residual_is_x(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.depthwise_conv2d(x, weight, bias, residual=x)


def _geglu(device: torch.device, dtype: torch.dtype) -> Inputs:
    return {"h": _random(device, dtype, 3, 5, 32)}


def _geglu_of_two(device: torch.device, dtype: torch.dtype) -> Inputs:
    return {"h": _random(device, dtype, 3, 5, 16), "value": _random(device, dtype, 3, 5, 16)}


def _pixel_shuffle_add(device: torch.device, dtype: torch.dtype) -> Inputs:
    return {"x": _random(device, dtype, 2, 3, 4, 32), "y": _random(device, dtype, 2, 6, 8, 8)}


def _pixel_shuffle_add_nchw(device: torch.device, dtype: torch.dtype) -> Inputs:
    return {"x": _random(device, dtype, 2, 32, 3, 4), "y": _random(device, dtype, 2, 8, 6, 8)}


def _pixel_shuffle_add_channels_last(device: torch.device, dtype: torch.dtype) -> Inputs:
    inputs = _pixel_shuffle_add_nchw(device, dtype)
    return {k: v.detach().contiguous(memory_format=torch.channels_last).requires_grad_() for k, v in inputs.items()}


def _pixel_unshuffle(device: torch.device, dtype: torch.dtype) -> Inputs:
    return {"x": _random(device, dtype, 2, 6, 8, 8)}


def _pixel_unshuffle_nchw(device: torch.device, dtype: torch.dtype) -> Inputs:
    return {"x": _random(device, dtype, 2, 8, 6, 8)}


def _shuffle_norm_add(device: torch.device, dtype: torch.dtype) -> Inputs:
    return {**_pixel_shuffle_add(device, dtype), "t": _random(device, torch.float32, 2), **_gates(device, 8)}


def _td_group_norm(device: torch.device, dtype: torch.dtype) -> Inputs:
    return {"x": _random(device, dtype, 2, 5, 16), "t": _random(device, torch.float32, 2), **_gates(device, 16)}


EXAMPLES = {
    "td_layer_norm": Example(F.td_layer_norm, _td_layer_norm, "triton"),
    "td_rms_norm": Example(F.td_rms_norm, _td_rms_norm, "triton"),
    "td_group_norm": Example(lambda **inputs: F.td_group_norm(num_groups=4, **inputs), _td_group_norm, "triton"),
    "geglu_linear": Example(F.geglu_linear, _geglu_linear, "triton"),
    "geglu": Example(F.geglu, _geglu, "triton"),
    "depthwise_conv2d": Example(F.depthwise_conv2d, _depthwise_conv2d, "triton"),
    "pixel_shuffle_add": Example(lambda x, y: F.pixel_shuffle_add(x, y, upscale_factor=2), _pixel_shuffle_add, "cuda"),
    "pixel_unshuffle": Example(lambda x: F.pixel_unshuffle(x, 2), _pixel_unshuffle, "cuda"),
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
    """Return the examples of Triton's operators that have a C++ form as well, with that form."""
    return {
        f"{name} in C++": replace(example, fused="cpp")
        for name, example in examples.items()
        if example.fused == "triton" and "cpp" in FUSED_FORMS[name.replace(",", " ").split()[0]].cpu
    }


VARIANTS = {
    "td_layer_norm without residual": Example(F.td_layer_norm, _without(_td_layer_norm, "residual"), "triton"),
    "td_layer_norm without shift": Example(F.td_layer_norm, _none_for(_td_layer_norm, *SHIFT), "triton"),
    "td_layer_norm, scalar gates": Example(F.td_layer_norm, _td_layer_norm_scalar_gates, "triton"),
    "td_rms_norm with residual": Example(F.td_rms_norm, _td_rms_norm_with_residual, "triton"),
    "td_group_norm without shift": Example(
        partial(F.td_group_norm, num_groups=4), _none_for(_td_group_norm, *SHIFT), "triton"
    ),
    "geglu, tanh, gate last": Example(partial(F.geglu, approximate="tanh", gate="last"), _geglu, "triton"),
    "geglu of two tensors": Example(F.geglu, _geglu_of_two, "triton"),
    "depthwise_conv2d without residual": Example(F.depthwise_conv2d, _without(_depthwise_conv2d, "residual"), "triton"),
    "depthwise_conv2d without bias": Example(F.depthwise_conv2d, _without(_depthwise_conv2d, "bias"), "triton"),
    "depthwise_conv2d, x as residual": Example(
        _depthwise_conv2d_residual_is_x, _without(_depthwise_conv2d, "residual"), "triton"
    ),
    "pixel_shuffle_add, nchw": Example(
        lambda x, y: F.pixel_shuffle_add(x, y, 2, layout="nchw"), _pixel_shuffle_add_nchw, "cuda"
    ),
    "pixel_shuffle_add, channels last": Example(
        lambda x, y: F.pixel_shuffle_add(x, y, 2, layout="nchw"), _pixel_shuffle_add_channels_last, "cuda"
    ),
    "pixel_shuffle_add without y": Example(
        lambda x: F.pixel_shuffle_add(x, None, 2), _without(_pixel_shuffle_add, "y"), "cuda"
    ),
    "pixel_unshuffle, nchw": Example(lambda x: F.pixel_unshuffle(x, 2, layout="nchw"), _pixel_unshuffle_nchw, "cuda"),
}
"""Calls of the same functions that take another path through the operator, or use another operator."""

HALF_PRECISION_ONLY = {
    "geglu_linear in one kernel": Example(
        partial(F.geglu_linear, form="one_kernel"), lambda device, dtype: _geglu_linear(device, torch.float16), "triton"
    ),
    "geglu_linear in one kernel without bias": Example(
        partial(F.geglu_linear, form="one_kernel"),
        lambda device, dtype: _without(_geglu_linear, "bias")(device, torch.float16),
        "triton",
    ),
}
