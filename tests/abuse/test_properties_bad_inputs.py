"""Invalid values for every argument of every operator raise an error that names it, before any kernel runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import dimr_kernels as dk
from dimr_kernels import functional as F
from dimr_kernels.dispatch import unavailable_reason
from tests.support.operators import EXAMPLES

CPU = torch.device("cpu")
OTHERS: dict[str, dict[str, Any]] = {
    "td_layer_norm": {"eps": 1e-5},
    "td_rms_norm": {"eps": 1e-5},
    "td_group_norm": {"num_groups": 4, "eps": 1e-5},
    "geglu": {"approximate": "none", "gate": "first"},
    "geglu_linear": {"approximate": "none", "gate": "first", "form": "two_kernels"},
    "pixel_shuffle_add": {"upscale_factor": 2, "layout": "nhwc"},
    "pixel_unshuffle": {"downscale_factor": 2, "layout": "nhwc"},
    "pixel_shuffle_td_norm_add": {"upscale_factor": 2, "eps": 1e-5},
    "attention": {"backend": "auto", "scale": 1.0},
}
MAY_BE_NONE = {("td_layer_norm", "residual"), ("geglu_linear", "bias"), ("pixel_shuffle_add", "y")}
MAY_BE_NONE |= {("depthwise_conv2d", name) for name in ("bias", "residual")} | {("attention", "scale")}
# Replacements of a tensor. A changed shape has one dimension more, of a size that is used nowhere else.
WRONG_TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "None": lambda x: None,
    "a string": lambda x: "x",
    "a list": lambda x: x.tolist(),
    "integers": lambda x: x.long(),
    "truth values": lambda x: x > 0,
    "complex": lambda x: x.to(torch.complex64),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "another float8": lambda x: x.to(torch.float8_e5m2),
    "no dimension": lambda x: x.new_zeros(()),
    "two dimensions more": lambda x: x.detach().expand(11, 13, *x.shape),
    "an odd last dimension": lambda x: x.new_zeros((*x.shape[:-1], 67)),
    "another device": lambda x: x.to("meta"),
}
WRONG_VALUES = {
    "int": (None, 0, -2, 2.0, "2", [2], torch.ones(2)),
    "float": (None, "x", [1.0], torch.ones(2), 1j),
    "str": (None, "other", 3, ["none"]),
}
# Changes above that are valid, by the documentation of these operators.
FITS = {(name, "t", "no dimension") for name in EXAMPLES}
FITS |= {
    ("geglu", "h", "two dimensions more"),
    ("geglu", "h", "another device"),
    ("pixel_unshuffle", "x", "another device"),
}
FITS |= {
    ("geglu_linear", "x", "two dimensions more"),
    ("attention", "v", "an odd last dimension"),
    ("pixel_unshuffle", "x", "an odd last dimension"),
}

TENSORS = [(name, argument) for name in EXAMPLES for argument in EXAMPLES[name].make_inputs(CPU, torch.float32)]
VALUES = [(name, argument) for name, values in OTHERS.items() for argument in values]


def whole_call(name: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    inputs = EXAMPLES[name].make_inputs(CPU, torch.float32)
    return getattr(F, name), {key: x.detach() for key, x in inputs.items()} | OTHERS.get(name, {})


def assert_refused(name: str, argument: str, value: Any, what: str) -> None:
    function, inputs = whole_call(name)
    fused = EXAMPLES[name].fused
    for backend in ("eager", fused if fused == "auto" or unavailable_reason(fused, CPU) is None else "auto"):
        found = "taken"
        with dk.use_backend(backend):
            try:
                function(**inputs | {argument: value})
            except (TypeError, ValueError) as error:
                found = str(error)
        assert found.startswith(f"{name}: "), f"{argument}, {what}, {backend}"


@pytest.mark.parametrize(("name", "argument"), TENSORS)
def test_wrong_tensors(name, argument):
    x = whole_call(name)[1][argument]
    for what, change in WRONG_TENSORS.items():
        optional = what == "None" and (name, argument) in MAY_BE_NONE
        if not optional and (name, argument, what) not in FITS:
            assert_refused(name, argument, change(x), what)


@pytest.mark.parametrize(("name", "argument"), VALUES)
def test_wrong_values(name, argument):
    right = whole_call(name)[1][argument]
    for value in WRONG_VALUES[type(right).__name__]:
        if value is not None or (name, argument) not in MAY_BE_NONE:
            assert_refused(name, argument, value, repr(value))
