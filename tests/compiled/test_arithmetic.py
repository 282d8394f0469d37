"""Arithmetic that the norms' kernels rest on, as compiled: division by a count, the type that sums accumulate in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton
import triton.language as tl

from benchmarks.machine_code.compile import summed_types
from dimr_kernels.ops.norm_triton import divide

from .ptx.triton_driver import compiled_kernels
from .ptx.values import Approximation


@triton.jit
def divide_kernel(total_ptr, out_ptr, size, count, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.load(total_ptr + at, mask=at < size, other=0.0)
    tl.store(out_ptr + at, divide(total, count), mask=at < size)


def divided(total: Tensor, count: int, exact: bool = True) -> Tensor:
    out = torch.empty_like(total)
    with compiled_kernels(80, approximation=Approximation(exact=exact)):
        divide_kernel[(-(-len(total) // 1024),)](total, out, len(total), count, 1024)
    return out


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "approximate at its bounds"])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 49, 192, 240, 1152, 8192, 38400, 65535, 4194303])
def test_a_division_by_a_count_is_rounded_once(count: int, exact: bool) -> None:
    """Totals of random bits, and constant rows summed, whose mean has to be the constant."""
    bits = torch.randint(-(2**31), 2**31, (4096,), dtype=torch.int64).to(torch.int32)
    drawn = bits.view(torch.float32)
    rows = (torch.randn(1024) * count).float()
    whole = torch.arange(1, 1025) * float(count)
    total = torch.cat([drawn[drawn.abs() > 1e-30], rows, whole[whole < 2**24]])
    wanted = (total.double() / count).float()
    torch.testing.assert_close(divided(total, count, exact), wanted, rtol=0, atol=0, equal_nan=True)


def test_a_division_keeps_what_is_not_finite() -> None:
    total = torch.tensor([np.inf, -np.inf, np.nan, 0.0, 3.4e38, -3.4e38, 1e-45])
    torch.testing.assert_close(divided(total, 48), (total.double() / 48).float(), rtol=0, atol=0, equal_nan=True)


@triton.jit
def sum_kernel(x_ptr, out_ptr, SIZE: tl.constexpr):
    tl.store(out_ptr, tl.sum(tl.load(x_ptr + tl.arange(0, SIZE)), axis=0).to(tl.float32))


@pytest.mark.parametrize(
    ("dtype", "name", "total"), [(torch.float16, "f16", 2048.0), (torch.bfloat16, "bf16", 256.0)], ids=str
)
def test_a_sum_of_16_bits_accumulates_in_16_bits(dtype: torch.dtype, name: str, total: float) -> None:
    """So ``test_machine_code.py`` lets no kernel sum 16-bit numbers: here the one beyond 2048, or 256, is lost."""
    x, out = torch.zeros(128, dtype=dtype), torch.empty(1)
    x[0], x[1] = total, 1.0  # in two lanes' sums, which are added last
    with compiled_kernels(80):
        compiled = sum_kernel[(1,)](x, out, 128)
    assert summed_types(compiled.asm["ttir"]) == (name,)
    assert out.item() == total
    with compiled_kernels(80):
        compiled = sum_kernel[(1,)](x.float(), out, 128)
    assert summed_types(compiled.asm["ttir"]) == ("f32",)
    assert out.item() == total + 1


def test_compiled_kernels_stay_in_tritons_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with compiled_kernels(80):
        sum_kernel[(1,)](torch.zeros(32), torch.empty(1), 32)  # a size of its own: no kernel of this process
    assert [path.name for path in (tmp_path / "ptx").rglob("*.ptx")] == ["sum_kernel.ptx"]
