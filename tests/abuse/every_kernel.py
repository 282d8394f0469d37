"""A small call of every kernel, odd sizes, forward and backward: what a GPU's sanitizers are run on.

compute-sanitizer --tool memcheck python -m tests.abuse.every_kernel
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dimr_kernels import functional as F
from tests.support.operators import EXAMPLES
from tests.support.parity import results_of

WIDE = 8200  # more columns than a norm holds in registers

Call = tuple[Callable[..., Any], Callable[[torch.device], dict[str, Any]], str]


def _random(device: torch.device, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(device, dtype).requires_grad_()


def _wide_norm(device: torch.device) -> dict[str, Any]:
    names = ("p1", "p2", "scale_gate_weight", "scale_gate_offset")
    gates = {name: _random(device, WIDE) for name in names}
    return {"x": _random(device, 2, 3, WIDE), "residual": _random(device, 2, 3, WIDE), "t": _random(device, 2), **gates}


def _half_layer(device: torch.device) -> dict[str, Any]:
    return {"x": _random(device, 5, 24, dtype=torch.float16), "weight": _random(device, 14, 24, dtype=torch.float16)}


def _gated_pair(device: torch.device) -> dict[str, Any]:
    return {"h": _random(device, 5, 7), "value": _random(device, 5, 7)}


def _odd_image(device: torch.device) -> dict[str, Any]:
    return {"x": _random(device, 1, 5, 7, 35), "weight": _random(device, 35, 1, 5, 5), "bias": _random(device, 35)}


CALLS: dict[str, Call] = {
    name: (example.function, lambda device, make=example.make_inputs: make(device, torch.float32), example.fused)
    for name, example in EXAMPLES.items()
    if example.fused == "triton"
} | {
    "td_rms_norm of wide rows": (F.td_rms_norm, _wide_norm, "triton"),
    "geglu_linear in one kernel": (lambda **x: F.geglu_linear(form="one_kernel", **x), _half_layer, "triton"),
    "geglu of two tensors": (F.geglu, _gated_pair, "triton"),
    "depthwise_conv2d of odd sizes": (F.depthwise_conv2d, _odd_image, "triton"),
}


def main() -> None:
    """Run every call on the GPU, and the compiled extension's in every dtype."""
    device = torch.device("cuda")
    for function, make_inputs, backend in CALLS.values():
        results_of(function, make_inputs(device), backend)
    for name in ("pixel_shuffle_add", "pixel_unshuffle"):
        example = EXAMPLES[name]
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            results_of(example.function, example.make_inputs(device, dtype), example.fused)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
