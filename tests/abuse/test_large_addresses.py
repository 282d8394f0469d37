"""Offsets beyond 2**31 elements, in every operator and along every dimension that can be that long.

Nothing is that large here: rows lie far apart in a sparse file, or huge tensors are memory that the system promised
and nobody touched, of which the first and the last programs of a kernel read and write what is theirs.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import dimr_kernels as dk
from dimr_kernels import functional as F
from tests.support.parity import assert_parity

from .interpreter import guarded_memory, skip_the_middle

GATES = ("p1", "p2", "scale_gate_weight", "scale_gate_offset", "p3", "p4", "shift_gate_weight", "shift_gate_offset")
HALF = torch.float16
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="what is interpreted here")


@pytest.fixture(autouse=True)
def guarded(monkeypatch):
    """Turn an offset that wrapped around, and so points outside every tensor, into an error instead of a crash."""
    torch.utils.deterministic.fill_uninitialized_memory = False  # it would touch what must stay untouched
    with guarded_memory(lambda owner, name, value: monkeypatch.setattr(owner, name, value, raising=False)):
        yield
    torch.utils.deterministic.fill_uninitialized_memory = True


def random(*shape: int, dtype: torch.dtype = HALF) -> Tensor:
    return torch.randn(shape).to(dtype).requires_grad_()


def gates(D: int) -> dict[str, Tensor]:
    return {name: random(D, dtype=torch.float32) for name in GATES}


def far_along(x: Tensor, dim: int, folder: Path) -> Tensor:
    """Place entries of one dimension 2**30 elements apart, with the same values."""
    distance, order = 2**30, [dim, *(i for i in range(x.dim()) if i != dim)]
    inner = x.detach().permute(order).contiguous()
    size = inner.shape[0] * distance
    base = torch.from_file(str(folder / f"sparse{dim}"), shared=True, size=size, dtype=x.dtype)
    view = base.as_strided(inner.shape, (distance, *inner.stride()[1:])).copy_(inner)
    return view.permute([order.index(i) for i in range(x.dim())]).requires_grad_(x.requires_grad)


# Name -> function, inputs, the arguments and dimensions that are spread.
STRIDED: dict[str, tuple[Callable[..., Any], Callable[[], dict[str, Any]], list[tuple[str, int]]]] = {
    "td_layer_norm": (
        F.td_layer_norm,
        lambda: {"x": random(3, 4, 8), "t": random(3), **gates(8), "residual": random(3, 4, 8)},
        [("x", 0), ("x", 1), ("residual", 0), ("residual", 1), ("t", 0)],
    ),
    "td_layer_norm of wide rows": (
        F.td_layer_norm,
        lambda: {"x": random(1, 3, 8200), "t": random(1), **gates(8200), "residual": random(1, 3, 8200)},
        [("x", 1), ("residual", 1)],
    ),
    "td_group_norm": (
        lambda **inputs: F.td_group_norm(num_groups=2, **inputs),
        lambda: {"x": random(3, 4, 8), "t": random(3), **gates(8)},
        [("x", 0), ("x", 1), ("t", 0)],
    ),
    "geglu": (F.geglu, lambda: {"h": random(4, 6), "value": random(4, 6)}, [("h", 0), ("value", 0)]),
    "geglu packed": (F.geglu, lambda: {"h": random(2, 3, 6)}, [("h", 1)]),
    "depthwise_conv2d": (
        F.depthwise_conv2d,
        lambda: {"x": random(3, 4, 5, 3), "weight": random(3, 1, 3, 3), "residual": random(3, 4, 5, 3)},
        [("x", 0), ("x", 1), ("x", 2), ("residual", 0), ("residual", 1), ("residual", 2)],
    ),
    "pixel_shuffle_td_norm_add": (
        lambda **inputs: F.pixel_shuffle_td_norm_add(upscale_factor=2, **inputs),
        lambda: {"x": random(3, 1, 3, 12), "y": random(3, 2, 6, 3), "t": random(3), **gates(3)},
        [("x", 0), ("x", 2), ("y", 0), ("t", 0)],
    ),
}
PLACES = [(name, *place) for name, (_, _, places) in STRIDED.items() for place in places]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "argument", "dim"), PLACES, ids=lambda value: str(value))
def test_rows_far_apart(name, argument, dim, tmp_path):
    function, make_inputs, _ = STRIDED[name]
    inputs = make_inputs()
    assert_parity(function, inputs | {argument: far_along(inputs[argument], dim, tmp_path)}, ulps=64)


def promised(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Make zeros that take no memory until they are touched."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    memory = mmap.mmap(-1, max(math.prod(shape), 1) * dtype.itemsize, flags=flags)
    return torch.frombuffer(memory, dtype=dtype)[: math.prod(shape)].view(shape)


@dataclass(frozen=True)
class Huge:
    """A call on huge tensors that equals a small one on their ends."""

    function: Callable[..., Any]
    shapes: dict[str, tuple[int, ...]]
    """Shapes of the huge inputs."""
    end: dict[str, tuple[Any, ...]]
    """Index of each one's end."""
    result: tuple[int, ...]
    result_end: tuple[Any, ...]
    small: dict[str, Callable[[], Tensor]] = field(default_factory=dict)
    known: tuple[Any, ...] = (...,)
    """Part of the small result that does not depend on what lies before the end."""
    gradients_of: tuple[str, ...] | None = None
    """None: of every input."""


LAST = (slice(-2, None),)
LAST_ROWS = (slice(None), slice(-2, None))
CORNER = (slice(None), slice(-2, None), slice(-8, None))
LOW_CORNER = (slice(None), slice(-1, None), slice(-4, None))
ROWS, WIDTH = 2**24 + 3, 128
PARAMETERS = {name: lambda: random(WIDTH, dtype=torch.float32) for name in GATES}
FEW_PARAMETERS = {name: lambda: random(64, dtype=torch.float32) for name in GATES}
HUGE = {
    "td_layer_norm, rows of one sample": Huge(
        F.td_layer_norm, {"x": (1, ROWS, WIDTH), "residual": (1, ROWS, WIDTH)}, {"x": LAST_ROWS, "residual": LAST_ROWS},
        (1, ROWS, WIDTH), LAST_ROWS, {"t": lambda: random(1), **PARAMETERS},
    ),
    "td_layer_norm, samples": Huge(
        F.td_layer_norm, {"x": (ROWS, 1, WIDTH), "t": (ROWS,)}, {"x": LAST, "t": LAST},
        (ROWS, 1, WIDTH), LAST, PARAMETERS, gradients_of=("x", "p1", "p4"),
    ),
    "td_layer_norm, wide rows": Huge(
        F.td_layer_norm, {"x": (1, 2**18 + 3, 8200)}, {"x": LAST_ROWS}, (1, 2**18 + 3, 8200), LAST_ROWS,
        {"t": lambda: random(1), **{name: lambda: random(8200, dtype=torch.float32) for name in GATES}},
        gradients_of=("x",),
    ),
    "td_group_norm, samples": Huge(
        lambda **inputs: F.td_group_norm(num_groups=1, **inputs), {"x": (ROWS, 1, WIDTH), "t": (ROWS,)},
        {"x": LAST, "t": LAST}, (ROWS, 1, WIDTH), LAST, PARAMETERS, gradients_of=("x",),
    ),
    "geglu packed": Huge(F.geglu, {"h": (ROWS, 2 * WIDTH)}, {"h": LAST}, (ROWS, WIDTH), LAST),
    "geglu": Huge(
        F.geglu, {"h": (ROWS, WIDTH), "value": (ROWS, WIDTH)}, {"h": LAST, "value": LAST}, (ROWS, WIDTH), LAST
    ),
    "geglu_linear": Huge(
        lambda **inputs: F.geglu_linear(form="one_kernel", **inputs), {"x": (2**26 + 5, 8)}, {"x": LAST},
        (2**26 + 5, 32), LAST, {"weight": lambda: random(64, 8)}, gradients_of=(),
    ),
    "depthwise_conv2d, images": Huge(
        F.depthwise_conv2d, {"x": (2**23 + 1, 2, 4, 32)}, {"x": (slice(-2, None),)}, (2**23 + 1, 2, 4, 32),
        (slice(-2, None),), {"weight": lambda: random(32, 1, 3, 3)}, gradients_of=("x",),
    ),
    "depthwise_conv2d, columns": Huge(
        F.depthwise_conv2d, {"x": (1, 2, 2**25 + 3, 32)}, {"x": (slice(None), slice(None), slice(-16, None))},
        (1, 2, 2**25 + 3, 32), (slice(None), slice(None), slice(-16, None)),
        {"weight": lambda: random(32, 1, 3, 3)}, (slice(None), slice(None), slice(-8, None)), gradients_of=(),
    ),
    "pixel_shuffle_td_norm_add": Huge(
        lambda **inputs: F.pixel_shuffle_td_norm_add(upscale_factor=2, **inputs),
        {"x": (1, 2**11 + 1, 2**12, 256), "y": (1, 2**12 + 2, 2**13, 64)}, {"x": LOW_CORNER, "y": CORNER},
        (1, 2**12 + 2, 2**13, 64), CORNER, {"t": lambda: random(1), **FEW_PARAMETERS}, (slice(None), slice(-1, None)),
    ),
}  # fmt: skip


def run(case: Huge, inputs: dict[str, Tensor], cotangent: Tensor) -> dict[str, Tensor]:
    """Return the result and the gradients of inputs that require one."""
    wanted = tuple(inputs) if case.gradients_of is None else case.gradients_of
    leaves = {name: x.detach().requires_grad_(name in wanted) for name, x in inputs.items()}
    outputs = case.function(**leaves)
    out = outputs[0] if isinstance(outputs, tuple) else outputs
    found = {"out": out.detach()}
    if wanted:
        gradients = torch.autograd.grad(out, [leaves[name] for name in wanted], cotangent)
        found |= zip(wanted, gradients, strict=True)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", HUGE)
def test_the_ends_of_huge_tensors(name, monkeypatch):
    case = HUGE[name]
    assert math.prod(case.result) > 2**31
    skip_the_middle(lambda owner, attribute, value: monkeypatch.setattr(owner, attribute, value, raising=False))
    monkeypatch.setattr(torch, "empty", lambda *shape, dtype=None, **_: promised(torch.Size(*shape), dtype))
    monkeypatch.setattr(torch, "empty_like", lambda x, **_: promised(x.shape, x.dtype))
    huge = {argument: promised(shape, HALF) for argument, shape in case.shapes.items()}
    for argument, x in huge.items():
        end = x[case.end[argument]]
        end.copy_(torch.randn(end.shape))
    others = {argument: make().detach() for argument, make in case.small.items()}
    small = {argument: x[case.end[argument]].clone() for argument, x in huge.items()} | others
    cotangent = promised(case.result, HALF)
    part = cotangent[case.result_end][case.known]
    part.copy_(torch.randn(part.shape))
    with dk.use_backend("triton"):
        found = run(case, huge | others, cotangent)
    with dk.use_backend("eager"):
        expected = run(case, small, cotangent[case.result_end].clone())
    found["out"] = found["out"][case.result_end][case.known]
    expected["out"] = expected["out"][case.known]
    for key, value in expected.items():
        got = found[key][case.end[key]] if key in case.end else found[key]
        torch.testing.assert_close(got, value, rtol=4e-3, atol=4e-3, msg=lambda text, key=key: f"{key}: {text}")
