"""Matrix products as Triton compiles them: operands as they lie, transposed, and changed in registers before."""

from __future__ import annotations

import re

import pytest
import torch

from .ptx.faults import Fault, Kind
from .ptx.triton_driver import compiled_kernels

triton = pytest.importorskip("triton")
tl = triton.language


@triton.jit
def product_kernel(
    a_ptr, b_ptr, out_ptr, A_FACTOR: tl.constexpr, B_FACTOR: tl.constexpr, A_DOWN: tl.constexpr, B_DOWN: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    a = tl.load(a_ptr + (m[:, None] + k[None, :] * M if A_DOWN else m[:, None] * K + k[None, :]))
    b = tl.load(b_ptr + (k[:, None] + n[None, :] * K if B_DOWN else k[:, None] * N + n[None, :]))
    out = tl.dot(a * A_FACTOR, b * B_FACTOR)
    tl.store(out_ptr + m[:, None] * N + n[None, :], out)


def run(architecture: int, dtype: torch.dtype, size: tuple[int, int, int], *form: int, num_warps: int = 4) -> str:
    """Compared with float64; returns the PTX."""
    a_factor, b_factor, a_down, b_down = form
    M, N, K = size
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator).to(dtype) for shape in ((M, K), (K, N)))
    out = torch.empty(M, N)
    stored_a, stored_b = (x.T.contiguous() if down else x for x, down in ((a, a_down), (b, b_down)))
    with compiled_kernels(architecture) as executor:
        product_kernel[(1,)](stored_a, stored_b, out, *form, M, N, K, num_warps=num_warps)
    wanted = (a * a_factor).double() @ (b * b_factor).double()
    assert (out - wanted).abs().max() <= 8 * torch.finfo(torch.float32).eps * wanted.abs().max()
    return executor.texts["product_kernel"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("b_down", [0, 1])
@pytest.mark.parametrize("a_down", [0, 1])
@pytest.mark.parametrize("factors", [(1, 1), (2, 1), (1, 2)], ids=str)
@pytest.mark.parametrize("architecture", [80, 90])
def test_forms(architecture: int, factors: tuple[int, int], a_down: int, b_down: int, dtype: torch.dtype) -> None:
    text = run(architecture, dtype, (64, 32, 64), *factors, a_down, b_down)
    assert ("mma.sync" if architecture == 80 else "wgmma.mma_async") in text


@pytest.mark.parametrize("num_warps", [4, 8])
@pytest.mark.parametrize("size", [(64, 16, 16), (64, 64, 32), (128, 128, 64), (128, 32, 128)], ids=str)
@pytest.mark.parametrize("architecture", [80, 90])
def test_sizes(architecture: int, size: tuple[int, int, int], num_warps: int) -> None:
    """On 9.0 with swizzles of 32, 64 and 128 bytes, several tiles along each side, one or two warp groups."""
    for down in (0, 1):
        run(architecture, torch.bfloat16, size, 1, 1, down, down, num_warps=num_warps)


def test_a_product_needs_the_fence_after_stores() -> None:
    with compiled_kernels(90, edit=lambda text: re.sub(r"fence\.proxy\.async[.:a-z]*;", "", text)) as executor:
        a, b, out = torch.randn(64, 64).half(), torch.randn(64, 32).half(), torch.empty(64, 32)
        with pytest.raises(Fault, match=r"after the last fence\.proxy\.async") as caught:
            product_kernel[(1,)](a, b, out, 1, 2, 0, 0, 64, 32, 64)
    assert caught.value.kind == Kind.MISSING_FENCE
    assert "fence.proxy.async" in executor.texts["product_kernel"]
