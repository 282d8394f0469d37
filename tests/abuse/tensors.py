"""Hypothesis strategies for tensors: any dtype that the operators take, any memory layout, any values."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor

Draw = Callable[..., object]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Parameters and timesteps are converted to float32 whatever their dtype.
PARAMETER_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
GPU = torch.cuda.is_available()

# Most cases are ordinary numbers: elsewhere the tolerance has less to say.
CONTENTS = ("normal", "normal", "normal", "offset", "constant", "zeros", "denormal", "large", "special")
LARGE = {torch.float32: 1e14, torch.float16: 3e2, torch.bfloat16: 1e14, torch.float64: 1e14}
LAYOUTS = ("contiguous", "contiguous", "permuted", "sliced", "shifted", "expanded", "overlapping", "negated")


def draw_tensor(
    draw: Draw,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    contents: tuple[str, ...] = CONTENTS,
    layouts: tuple[str, ...] = LAYOUTS,
) -> Tensor:
    """Draw a tensor of this shape, which may require a gradient."""
    content, layout = draw(st.sampled_from(contents)), draw(st.sampled_from(layouts))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    values = _filled(torch.randn(shape, generator=generator, dtype=torch.float64), content, dtype, generator).to(dtype)
    placed = _placed(draw, values.cuda() if GPU else values, layout)
    return placed.requires_grad_(draw(st.booleans()))


def _filled(values: Tensor, content: str, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    if content == "offset":
        return values + 10
    if content == "constant":
        return torch.full_like(values, 1.5)
    if content == "zeros":
        return torch.zeros_like(values)
    if content == "denormal" and (
        GPU or dtype != torch.bfloat16
    ):  # Triton's interpreter rounds those of bfloat16 twice
        return values * torch.finfo(dtype).smallest_normal / 4
    if content == "large":
        return values * LARGE[dtype]
    if content in ("special", "nan") and values.numel():
        chosen = torch.randint(values.numel(), (2,), generator=generator)
        numbers = torch.tensor([math.nan, math.inf, -math.inf] if content == "special" else [math.nan] * 3).double()
        values.view(-1)[chosen] = numbers[torch.randint(3, (2,), generator=generator)]
    return values


def _placed(draw: Draw, values: Tensor, layout: str) -> Tensor:
    """Copy the values to another memory layout; "expanded" and "overlapping" tensors repeat some of them."""
    rank = values.dim()
    if layout == "shifted":
        base = torch.zeros(values.numel() + 8, dtype=values.dtype, device=values.device)
        offset = draw(st.integers(1, 8))
        return base[offset : offset + values.numel()].view(values.shape).copy_(values)
    if rank == 0 or layout == "contiguous":
        return values
    if layout == "permuted":
        order = draw(st.permutations(range(rank)))
        stored = values.permute(order).contiguous()
        return stored.permute([order.index(i) for i in range(rank)])
    if layout == "channels_last":
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        steps = [draw(st.sampled_from((1, 1, 2))) for _ in range(rank)]
        gaps = [draw(st.integers(0, 2)) for _ in range(rank)]
        size = [n * step + 2 * gap for n, step, gap in zip(values.shape, steps, gaps, strict=True)]
        base = torch.full(size, math.nan, dtype=values.dtype, device=values.device)
        slices = zip(values.shape, steps, gaps, strict=True)
        return base[tuple(slice(gap, gap + n * step, step) for n, step, gap in slices)].copy_(values)
    if layout == "expanded":
        dim = draw(st.integers(0, rank - 1))
        return values.narrow(dim, 0, 1).expand(values.shape) if values.shape[dim] else values
    if layout == "overlapping" and values.numel():
        strides = [draw(st.integers(1, 4)) for _ in range(rank)]
        return values.new_tensor(_enough(values, strides)).as_strided(values.shape, strides)
    # A view with the conjugate's sign still to be applied. (A single element would count as contiguous all the same.)
    if layout == "negated" and values.dtype == torch.float32 and values.numel() > 1:
        return torch.complex(values, -values).conj().imag
    return values


def _enough(values: Tensor, strides: list[int]) -> list[float]:
    reached = 1 + sum((n - 1) * stride for n, stride in zip(values.shape, strides, strict=True))
    flat = values.reshape(-1)
    return flat.repeat(math.ceil(reached / flat.numel()))[:reached].tolist()
