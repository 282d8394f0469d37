"""Attention by torch's kernels against its definition: any shape, dtype, memory layout and values."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from dimr_kernels import functional as F

from .agreement import assert_agrees
from .tensors import CONTENTS, DTYPES, draw_tensor

FINITE = tuple(content for content in CONTENTS if content not in ("special", "large"))


@st.composite
def attention_inputs(draw: Any) -> dict[str, Any]:
    B, heads, L, S = draw(st.integers(0, 2)), draw(st.integers(1, 3)), draw(st.integers(0, 5)), draw(st.integers(1, 5))
    E, dtype = draw(st.sampled_from((1, 3, 8, 16, 20))), draw(st.sampled_from(DTYPES))
    Ev = draw(st.sampled_from((E, E, 8)))
    shapes = {"q": (B, heads, L, E), "k": (B, heads, S, E), "v": (B, heads, S, Ev)}
    # torch's CPU kernel answers a NaN among the scores with zeros: infinities come with the values alone.
    contents = {"q": FINITE, "k": FINITE, "v": CONTENTS}
    inputs = {name: draw_tensor(draw, shape, dtype, contents[name]) for name, shape in shapes.items()}
    return inputs | {"scale": draw(st.sampled_from((None, 0.1, 1.0)))}


@given(attention_inputs())
def test_attention(inputs):
    assert_agrees(F.attention, inputs, "auto", intermediate=inputs["q"].dtype)  # torch rounds the probabilities
