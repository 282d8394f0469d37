"""Adoption of linear layers: only where oneDNN's products are faster than torch's own, or on request."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dimr_kernels as dk
from dimr_kernels.adoption import rules
from dimr_kernels.ops import linear

from .comparing import assert_adopted_parity
from .models import Case, glu_vit, image, timm_convnext, torchvision_convnext


@pytest.fixture
def onednn_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        pytest.skip("this torch has no oneDNN")
    for module in (rules, linear):
        monkeypatch.setattr(module, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(linear, "SMALLEST_PRODUCT", 1)


def swapped(report: dk.AdoptionReport) -> list[str]:
    return [row.path for row in report.swapped if row.what == "nn.Linear"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Case(timm_convnext(conv_mlp=False), (image(),), 12),
        lambda: Case(torchvision_convnext(), (image(size=16),), 6),
        lambda: Case(glu_vit(), (image(size=16),), 2 + 2 * 3 + 1, {"linear_layers": True}),
    ],
    ids=["timm ConvNeXt", "torchvision ConvNeXt", "ViT on request"],
)
def test_outputs_and_gradients(onednn_is_faster, make):
    report = assert_adopted_parity(make())
    assert all(by == "linear" for by in (row.by for row in report.swapped if row.what == "nn.Linear"))


def test_the_projection_of_a_gated_mlp_stays_with_its_operator(onednn_is_faster):
    paths = swapped(dk.adopt(glu_vit(), linear_layers=True))
    assert "blocks.0.mlp.fc2" in paths
    assert "blocks.0.mlp.fc1" not in paths


def test_nothing_where_torchs_own_are_as_fast():
    assert swapped(dk.adopt(timm_convnext(conv_mlp=False))) == []


def test_networks_that_were_not_asked_about(onednn_is_faster):
    assert swapped(dk.adopt(glu_vit())) == []
    assert swapped(dk.adopt(timm_convnext(conv_mlp=False), linear_layers=False)) == []
    assert swapped(dk.adopt(timm_convnext(conv_mlp=False).to(torch.bfloat16))) == []
    assert swapped(dk.adopt(timm_convnext(conv_mlp=False).to("meta"))) == []


def test_a_layer_with_hooks_is_left(onednn_is_faster):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].register_forward_hook(lambda *_: None)
    report = dk.adopt(model, linear_layers=True)
    assert swapped(report) == ["1"]
    assert [row.path for row in report.left] == ["0"]
    report.undo()
    assert type(model[1]) is nn.Linear
