"""The inference engine against the model: outputs, guidance, samples, errors."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

import dimr
from tests.support.small_models import TINY, inputs, perturbed_model

BIG = ("dimr-m-3r", "dimr-l-3r", "dimr-xl-2r", "dimr-xl-3r", "dimr-g-2r")
NORMS = ("td_layer", "td_rms")


def shortened(name: str, norm: str) -> dimr.DiMRConfig:
    """A variant with its widths, heads and kernel size, but few layers and a small image."""
    config = dimr.model_config(name, norm=norm)
    smallest = 2 ** (config.num_branches - 1)
    return dataclasses.replace(config, layers=(3, 2, 2)[: config.num_branches], input_size=2 * smallest, num_classes=7)


def difference(found, wanted) -> float:
    """The largest relative error of any branch."""
    pairs = zip(found, wanted, strict=True)
    return max(((a.float() - b.float()).norm() / b.float().norm()).item() for a, b in pairs)


def assert_same_function(config: dimr.DiMRConfig, batch: int = 2) -> None:
    """float32: to rounding. bfloat16: no worse than twice the error of the model in bfloat16."""
    model, arguments = perturbed_model(config).eval(), inputs(config, batch)
    for timestep in (arguments["timestep"], 300.0):
        arguments["timestep"] = timestep
        with torch.no_grad():
            wanted = model(**arguments)
            found = dimr.optimize_for_inference(model, torch.float32)(**arguments)
            assert difference(found, wanted) < 5e-6
            assert [a.shape for a in found] == [b.shape for b in wanted]
            assert all(a.is_contiguous() and a.dtype == torch.float32 for a in found)
            engine = dimr.optimize_for_inference(model, torch.bfloat16)
            arguments["x"] = arguments["x"].bfloat16()
            found, eager = engine(**arguments), copy.deepcopy(model).bfloat16()(**arguments)
            arguments["x"] = arguments["x"].float()
            assert all(a.dtype == torch.bfloat16 for a in found)
            assert difference(found, wanted) <= 2 * difference(eager, wanted)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("dims", "layers"), [((16,), (1,)), ((16, 12), (1, 6)), ((16, 12, 8), (5, 1, 2))])
def test_same_function(dims, layers, norm):
    assert_same_function(dataclasses.replace(TINY, dims=dims, layers=layers, norm=norm))
