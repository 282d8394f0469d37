"""The time-dependent norms against their definition: any shape, dtypes, memory layout, values and gradients."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import event, given
from hypothesis import strategies as st

from dimr_kernels import functional as F

from .agreement import assert_agrees
from .tensors import DTYPES, PARAMETER_DTYPES, draw_tensor

WIDTHS = st.sampled_from((1, 2, 3, 7, 8, 16, 33))
EPS = st.sampled_from((1e-5, 1e-8, 0.5))
# With an infinite parameter the result depends on the order of sums, which differs from eager's.
BOUNDED = ("normal", "normal", "constant", "zeros", "denormal")


def draw_time(draw: Any, B: int) -> Any:
    if draw(st.booleans()):
        return draw_tensor(draw, (B,), draw(st.sampled_from(PARAMETER_DTYPES)), ("normal", "zeros", "denormal"))
    kind = draw(st.sampled_from(("float", "scalar", "one")))
    if kind == "float":
        return draw(st.floats(-2, 2))
    return draw_tensor(draw, () if kind == "scalar" else (1,), draw(st.sampled_from(PARAMETER_DTYPES)), ("normal",))


def draw_gates(draw: Any, D: int, kind: str, first: str, second: str) -> dict[str, Any]:
    G = draw(st.sampled_from((1, D)))
    shapes = {first: D, second: D, f"{kind}_gate_weight": G, f"{kind}_gate_offset": G}
    dtypes = st.sampled_from(PARAMETER_DTYPES)
    return {name: draw_tensor(draw, (size,), draw(dtypes), BOUNDED) for name, size in shapes.items()}


@st.composite
def norm_inputs(draw: Any, rms: bool) -> dict[str, Any]:
    D = draw(WIDTHS)
    shape = (draw(st.integers(0, 3)), *draw(st.lists(st.integers(0, 4), max_size=2)), D)
    shape = draw(st.sampled_from((shape, shape, (D,))))
    inputs = {"x": draw_tensor(draw, shape, draw(st.sampled_from(DTYPES)))}
    inputs["t"] = draw_time(draw, shape[0] if len(shape) > 1 else 1)
    inputs |= draw_gates(draw, D, "scale", "p1", "p2")
    if not rms:
        shift = draw_gates(draw, D, "shift", "p3", "p4")
        inputs |= shift if draw(st.booleans()) else dict.fromkeys(shift)
    if draw(st.booleans()):
        inputs["residual"] = draw_tensor(draw, shape, draw(st.sampled_from(DTYPES)))
    inputs["eps"] = draw(EPS)
    event(f"rank {len(shape)}, residual {'residual' in inputs}")
    return inputs


@st.composite
def cascade_inputs(draw: Any) -> dict[str, Any]:
    r, C = draw(st.integers(1, 3)), draw(st.sampled_from((1, 2, 5, 8)))
    B, H, W = draw(st.integers(0, 2)), draw(st.integers(0, 3)), draw(st.integers(1, 3))
    inputs = {
        "x": draw_tensor(draw, (B, H, W, r * r * C), draw(st.sampled_from(DTYPES))),
        "y": draw_tensor(draw, (B, r * H, r * W, C), draw(st.sampled_from(DTYPES))),
        "t": draw_time(draw, B),
        "upscale_factor": r,
        "eps": draw(EPS),
    }
    inputs |= draw_gates(draw, C, "scale", "p1", "p2")
    return inputs | draw_gates(draw, C, "shift", "p3", "p4")


@st.composite
def group_inputs(draw: Any) -> dict[str, Any]:
    groups, width = draw(st.sampled_from((1, 2, 3, 7))), draw(st.sampled_from((1, 2, 5, 8)))
    shape = (draw(st.integers(0, 3)), *draw(st.lists(st.integers(0, 4), max_size=2)), groups * width)
    inputs = {"x": draw_tensor(draw, shape, draw(st.sampled_from(DTYPES))), "t": draw_time(draw, shape[0])}
    inputs |= {"num_groups": groups, "eps": draw(EPS)} | draw_gates(draw, shape[-1], "scale", "p1", "p2")
    shift = draw_gates(draw, shape[-1], "shift", "p3", "p4")
    return inputs | (shift if draw(st.booleans()) else dict.fromkeys(shift))


def dtype_of_the_sum(inputs: dict[str, Any]) -> torch.dtype:
    residual = inputs.get("residual")
    return torch.float32 if residual is None else torch.promote_types(inputs["x"].dtype, residual.dtype)


@given(norm_inputs(rms=False))
def test_td_layer_norm(inputs):
    assert_agrees(F.td_layer_norm, inputs, intermediate=dtype_of_the_sum(inputs))


@given(norm_inputs(rms=True))
def test_td_rms_norm(inputs):
    assert_agrees(F.td_rms_norm, inputs, intermediate=dtype_of_the_sum(inputs))


@given(group_inputs())
def test_td_group_norm(inputs):
    assert_agrees(F.td_group_norm, inputs)


@given(cascade_inputs())
def test_pixel_shuffle_td_norm_add(inputs):
    assert_agrees(F.pixel_shuffle_td_norm_add, inputs)


def test_an_infinite_gate_is_open():
    """Check that masked rows, where the timestep reads as zero, do not reach the result."""
    x, ones = torch.randn(3, 5, requires_grad=True), torch.ones(5, requires_grad=True)
    gate = torch.full((5,), float("inf"))
    inputs = {"x": x, "t": torch.full((3,), 0.5), "p1": ones, "p2": ones.detach(), "scale_gate_weight": gate}
    assert_agrees(F.td_rms_norm, inputs | {"scale_gate_offset": torch.zeros(5, requires_grad=True)})
