from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import dimr_kernels as dk
from dimr_kernels.functional import pixel_shuffle_add, pixel_unshuffle
from tests.support.parity import assert_deterministic, assert_parity, strided
from tests.support.pixel_shuffle import DTYPES, LAYOUTS, STATUS, images, needs_extension, public, strew_special_values

# (B, C, H, W): odd everywhere, 16-byte runs on every side, one pixel, one channel.
SHAPES = [(2, 3, 5, 7), (2, 16, 3, 8), (1, 5, 1, 1), (2, 1, 4, 3)]


@pytest.fixture(autouse=True)
def extension_on_this_device(device):
    if device.type == "cuda" and STATUS.loaded and not STATUS.has_cuda:
        pytest.skip(f"compiled extension has no CUDA: {STATUS.reason}")


def shuffle_add(r, layout):
    return lambda x, y: pixel_shuffle_add(x, y, r, layout=public(layout))


def test_what_the_shuffle_is():
    """Move channel (i, j, c) of pixel (h, w) to channel c of pixel (2h + i, 2w + j)."""
    x, y = torch.randn(2, 3, 4, 2 * 2 * 5), torch.zeros(2, 6, 8, 5)
    out = pixel_shuffle_add(x, y, 2)
    assert torch.equal(out[1, 2 * 2 + 1, 2 * 3 + 0], x[1, 2, 3].view(2, 2, 5)[1, 0])
    x = torch.randn(2, 5 * 2 * 2, 3, 4)
    assert torch.equal(pixel_shuffle_add(x, None, 2, layout="nchw"), F.pixel_shuffle(x, 2))


@needs_extension
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("r", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_eager(shape, r, layout, dtype, device):
    assert_parity(shuffle_add(r, layout), images(shape, r, layout, dtype, device), backend="cuda")


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sums_round_as_torch_rounds(dtype, layout, device):
    """Compare bit by bit, with ties, overflow, infinities and NaN."""
    x, y = (v.detach() for v in images((1, 48, 3, 5), 2, layout, dtype, device).values())
    strew_special_values(x, y)
    with dk.use_backend("cuda"):
        found = shuffle_add(2, layout)(x, y)
    with dk.use_backend("eager"):
        expected = shuffle_add(2, layout)(x, y)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("r", [2, 3])
def test_unshuffle_inverts_shuffle(dtype, layout, r, device):
    x = images((2, 16, 3, 8), r, layout, dtype, device)["x"]
    with dk.use_backend("cuda"):
        high = pixel_shuffle_add(x, None, r, layout=public(layout))
        back = pixel_unshuffle(high, r, layout=public(layout))
    assert torch.equal(back, x)
    assert back.stride() == x.stride()
    assert_parity(lambda x: pixel_unshuffle(x, r, layout=public(layout)), {"x": high.detach()}, backend="cuda")


@needs_extension
@pytest.mark.parametrize("needs", [(True, False), (False, True), (False, False)])
def test_gradients_of_a_subset(needs, device):
    inputs = images((2, 8, 3, 4), 2, "nhwc", torch.float32, device, needs)
    assert_parity(shuffle_add(2, "nhwc"), inputs, backend="cuda")


@needs_extension
def test_strided_inputs(device):
    inputs = {k: strided(v) for k, v in images((2, 8, 3, 4), 2, "nhwc", torch.float32, device).items()}
    assert not inputs["x"].is_contiguous()
    assert_parity(shuffle_add(2, "nhwc"), inputs, backend="cuda")
    mixed = images((2, 8, 3, 4), 2, "nchw", torch.float32, device)
    mixed["y"] = mixed["y"].detach().to(memory_format=torch.channels_last).requires_grad_()
    assert_parity(shuffle_add(2, "nchw"), mixed, backend="cuda")


@needs_extension
@pytest.mark.parametrize("offset", [1, 4])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_misaligned_inputs(offset, layout, device):
    inputs = images((1, 16, 2, 8), 2, layout, torch.bfloat16, device)
    for name, value in inputs.items():
        storage = torch.zeros(value.numel() + offset, dtype=value.dtype, device=device)
        view = storage[offset:].as_strided(value.shape, value.stride(), offset)
        inputs[name] = view.copy_(value.detach()).requires_grad_()
    assert_parity(shuffle_add(2, layout), inputs, backend="cuda")


@needs_extension
@pytest.mark.parametrize("shape", [(0, 4, 2, 2), (1, 0, 2, 2), (1, 4, 0, 3)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty(shape, layout, device):
    assert_parity(shuffle_add(2, layout), images(shape, 2, layout, torch.float32, device), backend="cuda")
    x = images(shape, 2, layout, torch.float32, device)["x"]
    for backend in ("eager", "cuda"):
        with dk.use_backend(backend):
            high = pixel_shuffle_add(x, None, 2, layout=public(layout))
            assert pixel_unshuffle(high, 2, layout=public(layout)).shape == x.shape


@needs_extension
def test_large_enough_for_several_threads(device):
    torch.set_num_threads(3)
    assert_parity(shuffle_add(2, "nhwc"), images((2, 48, 33, 32), 2, "nhwc", torch.float32, device), backend="cuda")
    assert_deterministic(shuffle_add(2, "nchw"), images((2, 48, 33, 32), 2, "nchw", torch.bfloat16, device), "cuda")


@needs_extension
def test_output_keeps_the_memory_format(device):
    inputs = images((2, 4, 3, 5), 2, "channels_last", torch.float32, device)
    with dk.use_backend("cuda"):
        assert shuffle_add(2, "channels_last")(**inputs).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("backend", ["eager", pytest.param("cuda", marks=needs_extension)])
def test_mixed_dtypes_promote(backend, device):
    inputs = images((1, 4, 2, 2), 2, "nhwc", torch.float32, device)
    x, y = inputs["x"].detach().bfloat16().requires_grad_(), inputs["y"]
    with dk.use_backend(backend):
        out = pixel_shuffle_add(x, y, 2)
        dx, dy = torch.autograd.grad(out.sum(), (x, y))
    assert (out.dtype, dx.dtype, dy.dtype) == (torch.float32, torch.bfloat16, torch.float32)


@needs_extension
def test_double_backward(device):
    x, y = images((1, 2, 2, 3), 2, "nhwc", torch.float32, device).values()
    found = []
    for backend in ("eager", "cuda"):
        with dk.use_backend(backend):
            (dx,) = torch.autograd.grad((pixel_shuffle_add(x, y, 2) ** 3).sum(), x, create_graph=True)
            found.append(torch.autograd.grad((dx**2).sum(), (x, y)))
    torch.testing.assert_close(found[1], found[0])


def test_float64_takes_the_definition(device):
    inputs = images((1, 2, 2, 3), 2, "nhwc", torch.float64, device)
    assert shuffle_add(2, "nhwc")(**inputs).dtype == torch.float64
    with dk.use_backend("cuda"), pytest.raises(dk.BackendError, match="float64"):
        shuffle_add(2, "nhwc")(**inputs)


X, Y = torch.zeros(1, 2, 3, 8), torch.zeros(1, 4, 6, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.zeros(2, 3, 8)}, ValueError, r"x must have 4 dimensions \[B, H, W, C\].*\[2, 3, 8\]"),
        ({"x": torch.zeros(1, 2, 3, 6)}, ValueError, "x must have a multiple of 4 channels.*got 6"),
        ({"x": torch.zeros(1, 2, 3, 8), "layout": "nchw"}, ValueError, "x must have a multiple of 4 channels.*got 2"),
        ({"y": torch.zeros(1, 4, 6, 3)}, ValueError, r"y must have shape \[1, 4, 6, 2\], got \[1, 4, 6, 3\]"),
        ({"y": torch.zeros(4, 6, 2)}, ValueError, "y must have shape"),
        ({"y": torch.zeros(1, 4, 6, 2, dtype=torch.int32)}, TypeError, "y must have a floating-point dtype.*int32"),
        ({"y": torch.zeros(1, 4, 6, 2, device="meta")}, ValueError, "y is on meta"),
        ({"upscale_factor": 0}, ValueError, "upscale_factor must be an integer of at least 1, got 0"),
        ({"upscale_factor": 2.0}, ValueError, "upscale_factor.*2.0"),
        ({"layout": "NHWC"}, ValueError, "layout must be one of 'nhwc', 'nchw'; got 'NHWC'"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=f"pixel_shuffle_add: {message}"):
        pixel_shuffle_add(**{"x": X, "y": Y, "upscale_factor": 2, **arguments})


def test_bad_input_of_unshuffle_is_named():
    with pytest.raises(ValueError, match=r"pixel_unshuffle: x must have height and width.*3, got 4 x 6"):
        pixel_unshuffle(Y, 3)
    with pytest.raises(ValueError, match="downscale_factor must be an integer"):
        pixel_unshuffle(Y, -1)


@needs_extension
def test_the_operator_guards_its_memory(device):
    """Call the operator without the public function's checks."""
    x, y = X.to(device), Y.to(device)
    for wrong in (torch.cat([y, y]), y[:, :2], y[:, :, :2], y[..., :1], y[0], y.half()):
        with pytest.raises(RuntimeError):
            torch.ops.dimr_kernels.pixel_shuffle_add(x, wrong, 2, "nhwc")
    for arguments in ((x, y, 3, "nhwc"), (x, y, 0, "nhwc"), (x, y, 2, "hwc"), (x.double(), None, 2, "nhwc")):
        with pytest.raises(RuntimeError):
            torch.ops.dimr_kernels.pixel_shuffle_add(*arguments)
    with pytest.raises(RuntimeError):
        torch.ops.dimr_kernels.pixel_unshuffle(y, 4, "nhwc")


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
    """Compare bit by bit: cache lines shared by runs, runs too short to stream, and work for several threads."""
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
