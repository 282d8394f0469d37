"""Measured shapes, against the layers of the models."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

import dimr
import dimr_kernels as dk
from benchmarks import test_attention, test_depthwise_conv, test_geglu, test_pixel_shuffle, test_shuffle_norm_add
from benchmarks import test_td_norm as td_norm
from benchmarks.measurement import cases
from benchmarks.shapes import BATCHES, PAPER, TARGET, Shapes, branches, cascades

MODULES = (test_attention, test_depthwise_conv, test_geglu, test_pixel_shuffle, test_shuffle_norm_add, td_norm)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def layers() -> list[tuple[str, torch.nn.Module]]:
    """Collect the layers of the five models."""
    with torch.device("meta"):
        return [(name, layer) for name in PAPER for layer in dimr.create_model(name).modules()]


def widths(shapes, **wanted) -> set[int]:
    return {s.width for s in shapes if all(getattr(s, name) == value for name, value in wanted.items())}


def test_every_width_of_the_models_is_swept(layers):
    sweep = td_norm.SHAPES.sweep
    layer_norms = {layer.normalized_shape[0] for _, layer in layers if isinstance(layer, dk.TDLayerNorm)}
    rms_norms = {layer.normalized_shape[0] for _, layer in layers if isinstance(layer, dk.TDRMSNorm)}
    assert widths(sweep, operator="td_layer_norm") == layer_norms
    assert widths(sweep, operator="td_rms_norm") == widths(sweep, operator="td_rms_norm_residual") == rms_norms
    convolutions = {layer.weight.shape[0] for _, layer in layers if isinstance(layer, dk.DepthwiseConv2d)}
    assert widths(test_depthwise_conv.SHAPES.sweep, kernel_size=7) == convolutions
    upsampled = {layer.proj.out_features // 4 for _, layer in layers if isinstance(layer, dk.PixelShuffleUpsample)}
    assert widths(test_pixel_shuffle.SHAPES.sweep) == widths(test_shuffle_norm_add.SHAPES.sweep) == upsampled
    assert all(set(Counter(s.batch for s in module.SHAPES.sweep)) == set(BATCHES) for module in MODULES)


def test_hidden_widths_are_those_of_the_mlps(layers):
    hidden = {layer.proj.out_features // 2 for _, layer in layers if isinstance(layer, dk.GEGLU)}
    assert widths(test_geglu.SHAPES.sweep) == hidden


def test_tokens():
    assert branches(["dimr-xl-3r"]) == [(257, 960), (1024, 480), (4096, 240)]
    assert cascades(["dimr-xl-3r"]) == [(16, 38400, 480), (32, 10560, 240)]
    assert branches(["dimr-m-3r"], norm="td_rms") == []


def test_target_has_what_the_targets_speak_of():
    target = td_norm.SHAPES.target
    assert widths(target, operator="td_layer_norm") == {192, 240, 384, 480, 768, 960, 38400}
    assert widths(target, operator="td_rms_norm") == {240, 480, 960}
    assert ("td_layer_norm", 64, 256, 38400) in target
    assert set(test_attention.SHAPES.target) == {(64, 12, 257, 64), (64, 16, 257, 64)}
    assert all(shape.batch == 64 for module in MODULES for shape in module.SHAPES.target)
    assert set(TARGET) < set(PAPER)


def test_large_is_well_beyond_a_cache():
    for module in MODULES:
        assert len(set(module.SHAPES.large)) >= 2
        for shape in module.SHAPES.large:
            workload = module.workload(shape, torch.bfloat16, CPU)
            assert workload.directions["forward"].bytes > 2.5 * (50 << 20), shape


SHAPES = Shapes(target=("a", "b"), sweep=("a", "c", "c"), large=("d", "c"), cpu=("tiny",))


@pytest.mark.parametrize(
    ("choice", "device", "expected"),
    [
        (None, "cuda", [("target", "a"), ("target", "b"), ("sweep", "c"), ("large", "d")]),
        ("all", "cuda", [("target", "a"), ("target", "b"), ("sweep", "c"), ("large", "d")]),
        ("target", "cuda", [("target", "a"), ("target", "b")]),
        ("sweep", "cuda", [("sweep", "c")]),  # a shape of the target keeps that scope
        ("large", "cuda", [("large", "d")]),
        (None, "cpu", [("target", "tiny")]),
        ("target", "cpu", [("target", "tiny")]),
    ],
)
def test_selection(choice, device, expected):
    assert list(SHAPES.select(choice, device)) == expected


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_cases(module):
    found = cases(module.SHAPES, module.workload, "all", torch.bfloat16, torch.device("cuda"))
    names = [str(case) for case in found]
    assert len(set(names)) == len(names)
    # A report identifies a measurement by these, whatever its scope.
    measured = [(c.workload.operator, c.workload.shape, c.implementation, c.direction) for c in found]
    assert len(set(measured)) == len(measured)
    assert {c.scope for c in found if c.implementation == "max-autotune"} == {"target"}
    assert {c.implementation for c in found} >= {"fused", "eager", "compiled", "max-autotune"}
    assert all("compiled" in name for name, c in zip(names, found, strict=True) if c.implementation == "max-autotune")
