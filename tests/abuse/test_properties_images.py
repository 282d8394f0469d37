"""Convolution and pixel shuffles against their definitions: any shape, layout, dtype, memory layout and values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dimr_kernels import functional as F
from dimr_kernels.dispatch import extension_status

from .agreement import assert_agrees
from .tensors import CONTENTS, DTYPES, GPU, LAYOUTS, PARAMETER_DTYPES, draw_tensor

STATUS = extension_status()
needs_extension = pytest.mark.skipif(
    not STATUS.loaded or (GPU and not STATUS.has_cuda), reason=f"compiled extension: {STATUS.reason}"
)
# A tap beyond the edge is zero times the weight, which not all forms compute.
FINITE = tuple(content for content in CONTENTS if content != "special")
# Whole 16-byte runs as well as odd numbers of channels.
CHANNELS = st.sampled_from((0, 1, 2, 3, 4, 8, 16))
FACTORS = st.sampled_from((1, 2, 2, 3, 4, 5))
ANYWHERE = (*LAYOUTS, "channels_last", "channels_last")


def draw_image(
    draw: Any, shape: tuple[int, ...], dtype: torch.dtype, contents: tuple[str, ...] = CONTENTS
) -> torch.Tensor:
    """Draw a feature map of four dimensions."""
    return draw_tensor(draw, shape, dtype, contents, ANYWHERE)


@st.composite
def convolution_inputs(draw: Any, kernel_sizes: tuple[int, ...]) -> dict[str, Any]:
    K, C = draw(st.sampled_from(kernel_sizes)), draw(st.sampled_from((1, 2, 3, 8, 33)))
    shape = (draw(st.integers(0, 2)), draw(st.integers(1, 6)), draw(st.integers(1, 9)), C)
    dtype = draw(st.sampled_from(DTYPES))
    weight = draw_tensor(draw, (C, 1, K, K), draw(st.sampled_from(PARAMETER_DTYPES)), FINITE)
    residual = draw(st.sampled_from(("none", "x", "other")))
    # With x as its own residual one tap is larger by 1, so infinities are not subtracted from each other as in eager.
    x = draw_image(draw, shape, dtype, FINITE if residual == "x" else CONTENTS)
    inputs = {"x": x, "weight": weight, "bias": None}
    if not inputs["x"].isfinite().all():  # the gradient of a tap beyond the edge, zero times infinity
        weight.requires_grad_(False)
    if draw(st.booleans()):
        inputs["bias"] = draw_tensor(draw, (C,), draw(st.sampled_from(PARAMETER_DTYPES)))
    if residual == "other":
        inputs["residual"] = draw_image(draw, shape, dtype)
    return inputs | {"onto_itself": residual == "x"}


def convolve(x: torch.Tensor, onto_itself: bool, **others: Any) -> torch.Tensor:
    return F.depthwise_conv2d(x, residual=x, **others) if onto_itself else F.depthwise_conv2d(x, **others)


def draw_sides(draw: Any) -> tuple[tuple[int, ...], tuple[int, ...], int, str]:
    """Draw shapes with few channels and with many, the upscale factor and the layout."""
    B, H, W, C, r = (
        draw(st.integers(0, 2)),
        draw(st.integers(0, 3)),
        draw(st.integers(1, 8)),
        draw(CHANNELS),
        draw(FACTORS),
    )
    if draw(st.booleans()):
        return (B, H, W, r * r * C), (B, r * H, r * W, C), r, "nhwc"
    return (B, C * r * r, H, W), (B, C, r * H, r * W), r, "nchw"


@st.composite
def shuffle_inputs(draw: Any) -> dict[str, Any]:
    low, high, r, layout = draw_sides(draw)
    y = draw_image(draw, high, draw(st.sampled_from(DTYPES))) if draw(st.booleans()) else None
    x = draw_image(draw, low, draw(st.sampled_from(DTYPES)))
    return {"x": x, "y": y, "upscale_factor": r, "layout": layout}


@st.composite
def unshuffle_inputs(draw: Any) -> dict[str, Any]:
    _, high, r, layout = draw_sides(draw)
    return {"x": draw_image(draw, high, draw(st.sampled_from(DTYPES))), "downscale_factor": r, "layout": layout}


@given(convolution_inputs((3, 5)))
def test_depthwise_conv2d(inputs):
    assert_agrees(convolve, inputs)


@settings(max_examples=settings.default.max_examples // 4)
@given(convolution_inputs((7,)))
def test_depthwise_conv2d_of_49_taps(inputs):
    assert_agrees(convolve, inputs)


@needs_extension
@given(shuffle_inputs())
def test_pixel_shuffle_add(inputs):
    assert_agrees(F.pixel_shuffle_add, inputs, "cuda")


@needs_extension
@given(unshuffle_inputs())
def test_pixel_unshuffle(inputs):
    assert_agrees(F.pixel_unshuffle, inputs, "cuda")
