"""The pixel shuffle's ways through a CPU: with and without AVX2, through its caches and past them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import dimr_kernels as dk
from dimr_kernels.functional import pixel_shuffle_add, pixel_unshuffle
from tests.support.pixel_shuffle import DTYPES, LAYOUTS, images, needs_extension, public, strew_special_values

# Name -> (AVX2 is used, bytes of the cache that decide whether a target is written past it).
CPU_PATHS = {"cached": (True, 1 << 60), "streamed": (True, 0), "without AVX2": (False, 0)}


@pytest.fixture(params=CPU_PATHS)
def cpu_path(request):
    from dimr_kernels import _C

    limits = _C.cpu_limits()
    found = limits.avx2, limits.cache_bytes
    avx2, cache_bytes = CPU_PATHS[request.param]
    if avx2 and not limits.avx2:
        pytest.skip("this CPU has no AVX2")
    limits.avx2, limits.cache_bytes = avx2, cache_bytes
    yield request.param
    limits.avx2, limits.cache_bytes = found


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_path_on_the_cpu(cpu_path, dtype, layout):
    """To the bit: lines that runs share, runs too short to be streamed, and work for several threads."""
    torch.set_num_threads(3)
    for shape in [(1, 67, 3, 5), (2, 128, 1, 70), (1, 3, 4, 3), (2, 48, 33, 32)]:
        x, y = (v.detach() for v in images(shape, 2, layout, dtype, "cpu").values())
        strew_special_values(x, y)
        for function in (
            lambda x=x, y=y: pixel_shuffle_add(x, y, 2, layout=public(layout)),
            lambda x=x: pixel_shuffle_add(x, None, 2, layout=public(layout)),
            lambda y=y: pixel_unshuffle(y, 2, layout=public(layout)),
        ):
            with dk.use_backend("eager"):
                expected = function()
            with dk.use_backend("cuda"):
                function()  # only memory that was written before is streamed to: the next result takes this one's
                found = function()
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@needs_extension
def test_what_is_known_of_this_cpu():
    from dimr_kernels import _C

    limits = _C.cpu_limits()
    assert limits.cache_bytes >= 1 << 18
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    assert limits.avx2 == ({"avx2", "f16c"} <= set(flags))
