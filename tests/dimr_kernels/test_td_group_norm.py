from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

import dimr_kernels as dk
from dimr_kernels.functional import td_group_norm
from tests.support import parity
from tests.support.parity import far_apart, strided

GATES = ("scale_gate_weight", "scale_gate_offset", "shift_gate_weight", "shift_gate_offset")
SHIFT = ("p3", "p4", "shift_gate_weight", "shift_gate_offset")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Statistics and gradients are sums of hundreds of terms, larger than the sum, in an order of their own.
assert_parity = partial(parity.assert_parity, ulps=8)


def inputs(shape=(2, 3, 5, 12), dtype=torch.float32, parameters=torch.float32, gate_width=None, times=None, offset=0.5):
    """Make arguments that all require a gradient; x has a mean of ``offset``, as activations do."""
    B, C = shape[0], shape[-1]

    def random(*size, dtype=parameters, offset=0.0):
        return (torch.randn(size) + offset).to(dtype).requires_grad_()

    arguments = {"x": random(*shape, dtype=dtype, offset=offset)}
    arguments["t"] = random(B if times is None else times, dtype=torch.float32)
    arguments |= {name: random(C) for name in ("p1", "p2", "p3", "p4")}
    return arguments | {name: random(gate_width or C) for name in GATES}


def on(device, arguments):
    return {
        name: None if value is None else value.detach().to(device).requires_grad_() for name, value in arguments.items()
    }


def call(groups=4, eps=1e-5):
    return lambda **arguments: td_group_norm(num_groups=groups, eps=eps, **arguments)


def small_tiles(stack):
    """Override the configurations: several chunks and tiles in an image of 15 pixels, two blocks of columns."""
    from dimr_kernels.launch import RowConfig, override_config
    from dimr_kernels.ops import td_group_norm_triton  # noqa: F401  (which defines the kernels)

    config = RowConfig(elements=16, columns=8, min_programs=4, max_tiles=4, num_warps=4)
    for kernel in ("moments_fwd", "fwd", "sums_bwd", "bwd"):
        stack.enter_context(override_config(f"td_group_norm_{kernel}", config))


@pytest.mark.parametrize("groups", [1, 3, 12])
def test_eager_is_torchs_group_norm_with_the_gates_mixture(groups):
    arguments = {name: value.double().detach() for name, value in inputs().items()}
    x, t = arguments["x"], arguments["t"].view(-1, 1)
    z = nn.functional.group_norm(x.movedim(-1, 1), groups, eps=0.1).movedim(1, -1)
    s, u = (
        torch.sigmoid(arguments[f"{n}_gate_weight"] * t + arguments[f"{n}_gate_offset"]) for n in ("scale", "shift")
    )
    gamma = s * arguments["p1"] + (1 - s) * arguments["p2"]
    beta = u * arguments["p3"] + (1 - u) * arguments["p4"]
    expected = z * gamma[:, None, None] + beta[:, None, None]
    with dk.use_backend("eager"):
        torch.testing.assert_close(call(groups, eps=0.1)(**arguments), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("C", "groups"), [(1, 1), (7, 7), (7, 1), (192, 32), (240, 6)])
def test_matches_eager(C, groups, dtype, device):
    assert_parity(call(groups), on(device, inputs((2, 3, 2, C), dtype)))


@pytest.mark.slow
@pytest.mark.parametrize("C", [480, 960, 38400])
def test_wide(C, device):
    assert_parity(call(15), on(device, inputs((2, 3, C), torch.bfloat16)))


@pytest.mark.parametrize("shape", [(1, 12), (1, 1, 12), (3, 1, 7, 12), (2, 2, 3, 2, 12), (0, 2, 12), (2, 0, 12)])
@pytest.mark.filterwarnings("error::UserWarning")
def test_shapes(shape, device):
    assert_parity(call(), on(device, inputs(shape)))


@pytest.mark.parametrize("offset", [0.5, 100.0])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_several_programs_in_a_sample(groups, offset, device):
    """Use chunks that end in the middle of a tile, groups across blocks of columns, and a mean of 100 deviations.

    A mean of 100 in float32 is off by up to 4e-6 for every pixel of the group, which sums over them collect.
    """
    pytest.importorskip("triton")
    from contextlib import ExitStack

    with ExitStack() as stack:
        small_tiles(stack)
        assert_parity(call(groups), on(device, inputs(offset=offset)), ulps=128 if offset > 1 else 8)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("gate_width", [1, 12])
@pytest.mark.parametrize("shift", [True, False])
def test_times_gates_and_shift(times, gate_width, shift, device):
    arguments = on(device, inputs(times=times, gate_width=gate_width))
    without = {} if shift else dict.fromkeys(SHIFT)
    kept = {name: value for name, value in arguments.items() if name not in without}
    assert_parity(lambda **given: call()(**given, **without), kept)


@pytest.mark.parametrize("parameters", [torch.float16, torch.bfloat16])
def test_parameters_of_another_dtype(parameters, device):
    assert_parity(call(), on(device, inputs(parameters=parameters)))


def test_strided(device):
    arguments = on(device, inputs())
    assert_parity(call(), arguments | {"x": strided(arguments["x"])})
    across = arguments["x"].detach().movedim(-1, 1).contiguous().movedim(1, -1)
    assert_parity(call(), arguments | {"x": across.requires_grad_()})


@pytest.mark.slow
def test_offsets_beyond_32_bits(device, tmp_path):
    arguments = on(device, inputs((3, 2, 12), torch.bfloat16))
    assert_parity(call(), arguments | {"x": far_apart(arguments["x"], tmp_path)})


def test_constant_images_stay_finite(device):
    arguments = on(device, inputs())
    assert_parity(call(), arguments | {"x": torch.full_like(arguments["x"], 3.0).requires_grad_()})


def test_double_backward_is_refused(device):
    arguments = on(device, inputs())
    with dk.use_backend("triton"):
        (dx,) = torch.autograd.grad(call()(**arguments).sum(), [arguments["x"]], create_graph=True)
        with pytest.raises(RuntimeError, match="td_group_norm"):
            dx.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_groups": 5}, "num_groups must divide the 12 channels, got 5"),
        ({"num_groups": 0}, "num_groups must divide the 12 channels, got 0"),
        ({"x": torch.zeros(3)}, r"x must have shape \[B, ..., C\] with C >= 1, got \[3\]"),
        ({"x": torch.zeros(2, 3, 0)}, r"got \[2, 3, 0\]"),
        ({"p2": torch.zeros(3)}, r"p2 must have shape \[12\], got \[3\]"),
        ({"shift_gate_weight": None}, "shift_gate_weight must be a Tensor"),
        ({"t": torch.zeros(3)}, r"t must have shape \[B\] = \[2\], \[1\] or \[\], got \[3\]"),
        ({"t": float("nan")}, "t is NaN"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {name: value.detach() for name, value in inputs().items()} | {"num_groups": 4} | change
    with pytest.raises((ValueError, TypeError), match=f"^td_group_norm: .*{message}"):
        td_group_norm(**arguments)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_group_norm_taken_over_is_the_same_function(affine, memory_format):
    norm = nn.GroupNorm(3, 12, eps=0.1, affine=affine).double()
    if affine:
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x = torch.randn(2, 12, 5, 4, dtype=torch.float64).to(memory_format=memory_format)
    module = dk.TDGroupNorm.from_group_norm(norm).double()
    y = module(x, torch.tensor([-0.5, 0.9]))
    torch.testing.assert_close(y, norm(x))
    if memory_format == torch.channels_last:  # nothing was copied into another order
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_the_modules_time(device):
    module = dk.TDGroupNorm(4, 12).to(device)
    nn.init.normal_(module.p3)
    x = torch.randn(2, 5, 12, device=device)
    with dk.time_conditioning(torch.tensor([0.1, 0.7], device=device)):
        y = module(x)
    torch.testing.assert_close(y, module(x, torch.tensor([0.1, 0.7], device=device)))
    assert not torch.equal(y, module(x, 0.0))
    with pytest.raises(ValueError, match="TDGroupNorm: no timestep"):
        module(x)


def test_the_modules_bad_arguments():
    with pytest.raises(ValueError, match="TDGroupNorm: num_groups must divide the 12 channels, got 7"):
        dk.TDGroupNorm(7, 12)
    with pytest.raises(ValueError, match="TDGroupNorm: layout"):
        dk.TDGroupNorm(4, 12, layout="nhcw")
