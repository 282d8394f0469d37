"""Export of the model in its eager form to ONNX, run by onnxruntime."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dimr
import dimr_kernels as dk
from tests.support.small_models import TINY, inputs, perturbed_model

from .neighbours import assert_close, require

NAMES = ("x", "timestep", "class_labels")


def exported(model: nn.Module, path: Path) -> Any:
    """Export with any batch size and return a session of onnxruntime."""
    runtime = require("onnxruntime", "onnx", "onnxscript")
    batch = torch.export.Dim("batch", min=1, max=64)
    with dk.use_backend("eager"):
        torch.onnx.export(
            model.eval(),
            tuple(inputs(batch=3).values()),
            path,
            dynamo=True,
            input_names=list(NAMES),
            dynamic_shapes={name: {0: batch} for name in NAMES},
            verbose=False,
        )
    return runtime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(session: Any, given: dict[str, Tensor]) -> list[Tensor]:
    return [torch.from_numpy(out) for out in session.run(None, {name: x.numpy() for name, x in given.items()})]


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["td_layer", "td_rms"])
def test_model(norm, tmp_path):
    model = perturbed_model(dataclasses.replace(TINY, norm=norm))
    session = exported(model, tmp_path / "model.onnx")
    for batch in (1, 2, 5):
        given = inputs(batch=batch)
        with torch.no_grad():
            wanted = model(**given)
        found = run(session, given)
        assert_close(found, wanted, 1e-4)
        assert [out.shape for out in found] == [out.shape for out in wanted]


@pytest.mark.slow
def test_sampling_with_the_exported_model(tmp_path):
    """Let onnxruntime predict the noise in ``dimr.sample``."""
    model = perturbed_model().eval()
    with torch.no_grad():  # predictions as small as a trained model's, so that steps do not blow rounding up
        for branch in model.branches:
            branch.head.conv.weight.mul_(0.1)
    session = exported(model, tmp_path / "model.onnx")

    class Predictor:
        config, device, dtype = model.config, model.device, model.dtype

        def __call__(self, x: Tensor, timestep: Tensor, class_labels: Tensor) -> tuple[Tensor, ...]:
            timestep = timestep.expand(len(x)).contiguous()
            return tuple(run(session, {"x": x, "timestep": timestep, "class_labels": class_labels}))

    drawn = [
        dimr.sample(predictor, [0, 3], steps=4, guidance=dimr.Guidance("constant", 0.4),
                    generator=torch.Generator().manual_seed(0))
        for predictor in (model, Predictor())
    ]  # fmt: skip
    assert_close(drawn[1:], drawn[:1], 1e-3)
