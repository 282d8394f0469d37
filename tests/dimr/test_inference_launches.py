"""The launches of one forward of the engine: every launch has its term in a formula, and nothing is read back."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import dimr
import dimr_kernels as dk
from dimr.model import network as checks_of_inputs
from tests.support.small_models import TINY, inputs, perturbed_model

READS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal")
ALLOCATIONS = ("empty", "new_empty", "empty_like", "empty_strided")
ATTENTION = "scaled dot product attention"


class Launches(TorchDispatchMode):
    """Operators that compute or copy, by name: views and allocations are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        name = operator._opname
        assert name not in READS, f"{name} waits for the device"
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in operator._schema.returns)
        if not is_view and name not in ALLOCATIONS:
            self.counts[ATTENTION if "scaled_dot_product" in name else name] += 1
        return operator(*arguments, **(keywords or {}))


@pytest.fixture(autouse=True)
def values_are_out_of_reach(monkeypatch):
    """As on a GPU, where arguments' values are not checked."""
    monkeypatch.setattr(checks_of_inputs, "can_read_values", lambda tensor: False)


def expected(config: dimr.DiMRConfig, geglu: Counter[str]) -> Counter[str]:
    """Launches of one forward; ``geglu``: those of one GeGLU projection."""
    mlp = Counter({"addmm_": 1}) + geglu  # the product that adds to the stream where it lies
    transformer = Counter({"td_norm_into": 2, "mm": 1, ATTENTION: 1, "addmm": 1}) + mlp
    convnext = Counter({"depthwise_conv2d_into": 1, "td_norm_into": 1}) + mlp
    total = Counter({"div": 1, "sub": 1, "index_select": 1})  # the norms' t; class embedding
    for branch, blocks in enumerate(config.blocks):
        total["addmm"] += blocks // 2  # long skips
        total["baddbmm"] += 1  # patches and position
        total += Counter({"td_norm_into": 1, "convolution": 1})  # prediction
        total["clone"] += 1  # the prediction, made contiguous for the caller
        total["pixel_unshuffle"] += config.patch_sizes[branch] > 1  # the one copy of the input: patches as columns
        if branch > 0:
            total += Counter({"td_norm_into": 1, "addmm": 1, "shuffle_norm_add_": 1})  # the cascade from below
        for _ in range(blocks):
            total += convnext if branch else transformer
    return +total


def launches_of(engine, config, backend, device, batch=1):
    arguments = {name: value.to(device) for name, value in inputs(config, batch).items()}
    arguments["x"] = arguments["x"].to(engine.dtype)
    with dk.use_backend(backend), Launches() as launches:
        engine(**arguments)
    return launches.counts


def assert_launches(config, dtype, device):
    engine = dimr.optimize_for_inference(perturbed_model(config).to(device), dtype, cuda_graph=False)
    found = launches_of(engine, config, "triton", device)
    two_kernels = Counter({"addmm": 1, "geglu_packed": 1})
    assert found == expected(config, Counter({"geglu_linear": 1}) if found["geglu_linear"] else two_kernels)


@pytest.mark.parametrize("norm", ["td_layer", "td_rms"])
def test_launches_of_two_branches(norm, device):
    config = dimr.DiMRConfig(2, 4, (16, 8), (2, 1), num_heads=2, num_classes=5, kernel_size=3, norm=norm)
    assert_launches(config, torch.float32, device)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_launches_of_three_branches(dtype, device):
    assert_launches(dataclasses.replace(TINY, layers=(5, 2, 3), norm="td_rms"), dtype, device)


def test_the_formula_counts_seven_and_four_launches_a_block():
    """One block more of each kind, GeGLU in its own kernel; the released XL/2R in full."""
    fused = Counter({"geglu_linear": 1})
    count = lambda layers: expected(dataclasses.replace(TINY, layers=layers), fused).total()  # noqa: E731
    two_blocks_and_a_skip = count((3, 1, 1)) - count((1, 1, 1)), count((1, 1, 3)) - count((1, 1, 1))
    assert two_blocks_and_a_skip == (2 * 7 + 1, 2 * 4 + 1)
    assert expected(dimr.model_config("dimr-xl-2r"), fused).total() == 39 * 7 + 19 + 21 * 4 + 10 + 15


def test_sampling_reads_nothing_back():
    """Noise to samples without the host looking at a value; also on a device whose values cannot be looked at."""
    guidance = dimr.Guidance("power", 3.0, 2.0)
    for device in ("cpu", "meta"):
        model = perturbed_model().to(device)
        engine = dimr.optimize_for_inference(model, torch.float32)
        for predictor in (engine, model):
            with dk.use_backend("auto"), Launches() if predictor is engine else torch.no_grad():
                noise = torch.zeros(2, 3, 8, 8, device=device)
                labels = torch.tensor([0, 3], device=device)
                assert dimr.sample(predictor, labels, noise, steps=4, guidance=guidance).shape == (2, 3, 8, 8)


def test_labels_are_joined_once_per_sampling():
    engine = dimr.optimize_for_inference(perturbed_model(), torch.float32)
    with Launches() as launches:
        dimr.sample(engine, [0, 3], steps=3, guidance=dimr.Guidance("constant", 1.0))
    assert launches.counts["cat"] == 1
