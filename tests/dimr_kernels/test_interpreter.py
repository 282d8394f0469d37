"""Arithmetic of Triton's interpreter (3.6 to 3.9), which tolerances and kernels take into account.

bfloat16 is kept there as 16-bit integers. So stores truncate (``ULPS`` of ``tests/support/parity.py`` has a unit in the
last place for that), and products and sums of bfloat16 tensors are those of the integers: every kernel converts to
float32 first, and products of matrices in bfloat16 are tested on compiled code alone.
"""

from __future__ import annotations

import importlib.metadata

import pytest
import torch
from torch import Tensor

from dimr_kernels.dispatch import TRITON_INTERPRETS

pytest.importorskip("triton")

import triton
import triton.language as tl

VERSION = tuple(int(part) for part in importlib.metadata.version("triton").split(".")[:2])
pytestmark = [
    pytest.mark.skipif(not TRITON_INTERPRETS, reason="kernels run on a GPU here"),
    pytest.mark.skipif(VERSION > (3, 9), reason="measured up to Triton 3.9"),
]
N = 64


@triton.jit
def store_kernel(x_ptr, out_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(out_ptr + at, tl.load(x_ptr + at))


@triton.jit
def product_kernel(x_ptr, out_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    x = tl.load(x_ptr + at)
    tl.store(out_ptr + at, x * x)


@triton.jit
def sum_kernel(x_ptr, out_ptr, SIZE: tl.constexpr):
    tl.store(out_ptr, tl.sum(tl.load(x_ptr + tl.arange(0, SIZE)), axis=0).to(tl.float32))


@triton.jit
def residue_kernel(x_ptr, out_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    x = tl.load(x_ptr + at)
    tl.store(out_ptr + at, tl.fma(x, x, -(x * x)))


def run(kernel, x: Tensor, out: Tensor) -> Tensor:
    kernel[(1,)](x, out, len(x))
    return out


def test_stores_to_bfloat16_truncate():
    x = 3 * torch.randn(N)
    truncated = (x.view(torch.int32) & -(2**16)).view(torch.float32).bfloat16()
    found = run(store_kernel, x, torch.empty(N, dtype=torch.bfloat16))
    assert torch.equal(found, truncated)
    assert not torch.equal(found, x.bfloat16())
    half = run(store_kernel, x, torch.empty(N, dtype=torch.float16))
    assert torch.equal(half, x.half())


def test_products_and_sums_of_bfloat16_are_not_those_of_its_numbers():
    ones = torch.ones(N, dtype=torch.bfloat16)
    assert not torch.equal(run(product_kernel, ones, torch.empty_like(ones)), ones)
    assert run(sum_kernel, ones, torch.empty(1)).item() != N
    assert run(sum_kernel, ones.half(), torch.empty(1)).item() == N


def test_fma_rounds_once_from_3_9_on():
    residue = run(residue_kernel, torch.randn(N), torch.empty(N))
    assert (residue.abs().max() > 0) == (VERSION >= (3, 9))
