from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import dimr_kernels as dk

from .rivals import untimed_reason
from .shapes import Shapes, configurations, tokens
from .workload import Direction, Rival, Workload, random


class Layer(NamedTuple):
    """``[batch, tokens, dim] -> [batch, tokens, hidden]``"""

    batch: int
    tokens: int
    dim: int
    hidden: int


def layers(names: tuple[str, ...], batch: int) -> list[Layer]:
    """The first half of every branch's MLPs."""
    return [
        Layer(batch, tokens(config, i), D, hidden)
        for config in configurations(names)
        for i, (D, hidden) in enumerate(zip(config.dims, config.hidden_dims, strict=True))
    ]


SHAPES = Shapes.of_layers(
    layers,
    large=(Layer(1024, 257, 960, 1920), Layer(512, 4096, 240, 480)),
    cpu=(Layer(4, 257, 96, 192),),
)


def apply(x: Tensor, weight: Tensor, bias: Tensor, form: str) -> Tensor:
    return dk.functional.geglu_linear(x, weight, bias, form=form)


def workload(shape: Layer, dtype: torch.dtype, device: torch.device) -> Workload:
    """The fused form is the one kernel, on a CPU torch's product and the C++ GeGLU."""
    B, L, K, N = shape
    x, h, out, weight = (n * dtype.itemsize for n in (B * L * K, B * L * 2 * N, B * L * N, 2 * N * K))
    product = 2 * B * L * K * 2 * N
    return Workload(
        operator="geglu_linear",
        shape=f"{B} x {L} x {K} -> {N}",
        batch=B,
        width=K,
        fused="triton",
        function=partial(apply, form="one_kernel" if device.type == "cuda" else "two_kernels"),
        make_inputs=lambda: {
            "x": random(B, L, K, dtype=dtype, device=device),
            "weight": random(2 * N, K, dtype=dtype, device=device) * K**-0.5,
            "bias": random(2 * N, dtype=dtype, device=device),
        },
        batched=("x",),
        directions={
            "forward": Direction(x + weight + out, flops=product),
            # x, the weight and the gradient in, their gradients out, h written and read; without its second product
            "backward": Direction(2 * x + 2 * weight + out + 2 * h, ("x", "weight", "bias"), 2 * product),
        },
        rivals={
            "two kernels": Rival(
                partial(apply, form="two_kernels"),
                backend="auto",
                unavailable_reason=lambda direction, inputs: untimed_reason("triton", device, dtype),
                note="torch's product, then the fused GeGLU",
            )
        },
        matmul=True,
    )


def test_geglu_linear(measure, case):
    measure(case)
