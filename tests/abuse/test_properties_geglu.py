"""GeGLU, alone and after a linear layer, against its definition: any shape, dtype, memory layout and values."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from dimr_kernels import functional as F

from .agreement import assert_agrees
from .tensors import CONTENTS, DTYPES, GPU, PARAMETER_DTYPES, draw_tensor

APPROXIMATE, GATE = st.sampled_from(("none", "tanh")), st.sampled_from(("first", "last"))
LEADING = st.lists(st.integers(0, 4), max_size=3)
# The one-kernel form keeps float32 sums where torch rounds the product, so it may not overflow where torch does.
MODERATE = (*(content for content in CONTENTS if content not in ("large", "special")), "nan")
# At minus infinity torch's gelu is NaN, zero times infinity; the kernels' is its limit, zero.
HERE = (*(content for content in CONTENTS if content != "special"), "nan")
# For 16-bit gates below -5.6 gelu is at most 1e-7, and its approximation is no more accurate than that.
FLOOR = 1e-6


@st.composite
def packed_inputs(draw: Any) -> dict[str, Any]:
    shape = (*draw(LEADING), 2 * draw(st.integers(0, 9)))
    h = draw_tensor(draw, shape, draw(st.sampled_from(DTYPES)), HERE)
    return {"h": h, "approximate": draw(APPROXIMATE), "gate": draw(GATE)}


@st.composite
def pair_inputs(draw: Any) -> dict[str, Any]:
    shape, dtype = (*draw(LEADING), draw(st.integers(0, 17))), draw(st.sampled_from(DTYPES))
    h, value = (draw_tensor(draw, shape, dtype, HERE) for _ in range(2))
    return {"h": h, "value": value, "approximate": draw(APPROXIMATE)}


@st.composite
def linear_inputs(draw: Any, dtypes: tuple[torch.dtype, ...], forms: tuple[str, ...]) -> dict[str, Any]:
    K, N, dtype = draw(st.integers(1, 9)), draw(st.integers(0, 5)), draw(st.sampled_from(dtypes))
    shape = (*draw(LEADING), K)
    bias_dtype = draw(st.sampled_from(PARAMETER_DTYPES))
    return {
        "x": draw_tensor(draw, shape, dtype, MODERATE),
        "weight": draw_tensor(draw, (2 * N, K), dtype, MODERATE),
        "bias": draw_tensor(draw, (2 * N,), bias_dtype, MODERATE) if draw(st.booleans()) else None,
        "approximate": draw(APPROXIMATE),
        "gate": draw(GATE),
        "form": draw(st.sampled_from(forms)),
    }


@given(packed_inputs())
def test_packed(inputs):
    assert_agrees(F.geglu, inputs)


@given(pair_inputs())
def test_two_tensors(inputs):
    assert_agrees(F.geglu, inputs)


@given(linear_inputs(DTYPES, ("two_kernels", "auto")))
def test_linear_in_two_kernels(inputs):
    assert_agrees(F.geglu_linear, inputs, intermediate=inputs["x"].dtype, floor=FLOOR)


@given(linear_inputs(DTYPES[1:] if GPU else (torch.float16,), ("one_kernel",)))
def test_linear_in_one_kernel(inputs):
    """Without a GPU float16 only, since Triton's interpreter multiplies bfloat16 wrongly."""
    assert_agrees(F.geglu_linear, inputs, intermediate=inputs["x"].dtype, floor=FLOOR)
