from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import dimr_kernels as dk
from dimr_kernels import padded_head_dim

from .shapes import Shapes, configurations, tokens
from .workload import Direction, Inputs, Rival, Workload, random

BACKENDS = ("flash_attn", "flash", "cudnn", "efficient", "math")


class Heads(NamedTuple):
    """``q, k, v [batch, heads, tokens, head_dim]``"""

    batch: int
    heads: int
    tokens: int
    head_dim: int


def layers(names: tuple[str, ...], batch: int) -> list[Heads]:
    """List the attention of the lowest branches, on the class token and the image's; head dims are padded."""
    return [
        Heads(batch, c.num_heads, tokens(c, 0), padded_head_dim(c.dims[0] // c.num_heads))
        for c in configurations(names)
    ]


SHAPES = Shapes.of_layers(
    layers,
    large=(Heads(512, 16, 257, 64), Heads(64, 16, 1025, 64)),
    cpu=(Heads(4, 4, 65, 64),),
)


def attend(q: Tensor, k: Tensor, v: Tensor, backend: str) -> Tensor:
    return dk.functional.attention(q, k, v, backend=backend)


def refusal_reason(backend: str, direction: str, inputs: Inputs) -> str | None:
    try:
        attend(**inputs, backend=backend)
    except dk.BackendError as error:
        return str(error)
    return None


def workload(shape: Heads, dtype: torch.dtype, device: torch.device) -> Workload:
    B, heads, L, E = shape
    size = B * heads * L * E * dtype.itemsize
    product = 2 * B * heads * L * L * E
    return Workload(
        operator="attention",
        shape=f"{B} x {heads} x {L} x {E}",
        batch=B,
        width=heads * E,
        fused="auto",
        function=dk.functional.attention,
        make_inputs=lambda: {name: random(*shape, dtype=dtype, device=device) for name in ("q", "k", "v")},
        batched=("q", "k", "v"),
        directions={
            "forward": Direction(4 * size, flops=2 * product),  # q, k, v in, out out; scores and their use
            # q, k, v, out and its gradient in, three gradients out; the scores again and four products
            "backward": Direction(8 * size, ("q", "k", "v"), 5 * product),
        },
        rivals={
            name: Rival(partial(attend, backend=name), backend="auto", unavailable_reason=partial(refusal_reason, name))
            for name in BACKENDS
        },
        matmul=True,
    )


def test_attention(measure, case):
    measure(case)
