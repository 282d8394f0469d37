"""Weights quantised by torchao: the model, the inference engine, checkpoints."""

from __future__ import annotations

import pytest
import torch

import dimr
import dimr_kernels as dk
from tests.support.small_models import inputs, perturbed_model

from .neighbours import assert_close, largest_change, require

KINDS = ("Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig")
LINEAR_LAYERS = 32


def quantised(kind: str) -> dimr.DiMR:
    quantization = require("torchao.quantization")
    model = perturbed_model().eval()
    quantization.quantize_(model, getattr(quantization, kind)())
    return model


@torch.no_grad()
@pytest.mark.parametrize("backend", ["eager", "auto"])
@pytest.mark.parametrize("kind", KINDS)
def test_model(kind, backend):
    model = quantised(kind)
    changed = [p for p in model.parameters() if type(p) is not torch.nn.Parameter]
    assert len(changed) == LINEAR_LAYERS
    with dk.use_backend(backend):
        found = model(**inputs())
        assert 1e-4 < largest_change(found, perturbed_model()(**inputs())) < 0.05
    assert (model.dtype, model.device) == (torch.float32, torch.device("cpu"))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_engine_keeps_quantised_layers(kind):
    model = quantised(kind)
    engine = dimr.optimize_for_inference(model, torch.float32)
    assert_close(engine(**inputs()), model(**inputs()))
    kept = engine.report()["not_fused"]
    assert "branches.0.blocks.1.attn.qkv has a weight of class Int8Tensor" in kept["branches.0.blocks.1"]
    assert {part for part in kept if part.endswith(("head", "class_embedding"))} == set()  # not linear layers
    lowered = dimr.optimize_for_inference(model, torch.bfloat16)(**{**inputs(), "x": inputs()["x"].bfloat16()})
    assert largest_change([out.float() for out in lowered], model(**inputs())) < 0.05


@torch.no_grad()
def test_layers_chosen_by_name():
    """Quantise one kind of layer: the parts without it are packed."""
    quantization = require("torchao.quantization")
    model = perturbed_model().eval()
    choose = lambda module, path: path.endswith("skips.0")  # noqa: E731
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig(), filter_fn=choose)
    engine = dimr.optimize_for_inference(model, torch.float32)
    assert_close(engine(**inputs()), model(**inputs()))
    parts = {part for part in engine.report()["not_fused"] if part.startswith("branches")}
    assert parts == {f"branches.{i}.skips.0" for i in range(3)}


def test_not_saved(tmp_path):
    with pytest.raises(dimr.CheckpointError, match=r"so that it loads again: .* is of class Int8Tensor"):
        dimr.save_model(quantised(KINDS[0]), tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
