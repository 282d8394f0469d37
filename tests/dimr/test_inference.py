"""The inference engine against the model: outputs, guidance, samples, errors."""

from __future__ import annotations

import copy
import dataclasses
import json

import pytest
import torch

import dimr
from dimr_kernels.dispatch import extension_status
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
    return max(((a.double() - b.double()).norm() / b.double().norm()).item() for a, b in pairs)


@torch.no_grad()
def assert_same_function(config: dimr.DiMRConfig, batch: int = 2) -> None:
    """In float32 and bfloat16 at most twice as far from the model in float64 as the model in that dtype is."""
    model, arguments = perturbed_model(config).eval(), inputs(config, batch)
    for timestep in (arguments["timestep"], 300.0):
        arguments["timestep"] = timestep
        truth = copy.deepcopy(model).double()(**{**arguments, "x": arguments["x"].double()})
        for dtype, bound in ((torch.float32, 2e-5), (torch.bfloat16, 0.2)):
            given = {**arguments, "x": arguments["x"].to(dtype)}
            eager = copy.deepcopy(model).to(dtype)(**given)
            found = dimr.optimize_for_inference(model, dtype)(**given)
            assert [a.shape for a in found] == [b.shape for b in eager]
            assert all(a.is_contiguous() and a.dtype == dtype for a in found)
            usual = difference(eager, truth)
            assert usual < bound
            assert difference(found, truth) <= 2 * usual


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("dims", "layers"), [((16,), (1,)), ((16, 12), (1, 6)), ((16, 12, 8), (5, 1, 2))])
def test_same_function(dims, layers, norm):
    assert_same_function(dataclasses.replace(TINY, dims=dims, layers=layers, norm=norm))


@pytest.mark.parametrize("name", ["dimr-tiny-3r", pytest.param("dimr-small-3r", marks=pytest.mark.slow)])
def test_small_variants_whole(name):
    assert_same_function(dimr.model_config(name), batch=1)


@pytest.mark.slow
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", BIG)
def test_big_variants_shortened(name, norm):
    assert_same_function(shortened(name, norm), batch=1)


def test_head_dims_are_padded_in_the_weights():
    config = dataclasses.replace(TINY, dims=(24, 12), layers=(1, 1))  # two heads of 12
    model = perturbed_model(config)
    for dtype, head_dim in ((torch.bfloat16, 16), (torch.float32, 12)):
        engine = dimr.optimize_for_inference(model, dtype)
        assert engine.report()["packed"]["head_dim"] == {"model": 12, "engine": head_dim}
        assert engine._branches[0].blocks[0].qkv.shape == (3 * 2 * head_dim, 24)
    assert_same_function(config)
    for block in model.branches[0].blocks:
        block.attn.pack_head_dim()
    assert difference(dimr.optimize_for_inference(model)(**bfloat16(config)), model(**inputs(config))) < 0.05


def bfloat16(config: dimr.DiMRConfig) -> dict:
    return {**inputs(config), "x": inputs(config)["x"].bfloat16()}


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_batches_and_dtypes(batch, dtype):
    model, arguments = perturbed_model(), inputs(batch=batch)
    found = dimr.optimize_for_inference(model, dtype)(**{**arguments, "x": arguments["x"].to(dtype)})
    assert [tuple(a.shape) for a in found] == [(batch, 3, s, s) for s in TINY.resolutions]
    assert all(a.dtype == dtype for a in found)
    assert batch == 0 or difference(found, model(**arguments)) < 0.01


def test_strided_input_int32_labels_and_autocast():
    model, arguments = perturbed_model(), inputs()
    engine = dimr.optimize_for_inference(model, torch.float32)
    wanted = engine(**arguments)
    arguments["class_labels"] = arguments["class_labels"].int()
    arguments["x"] = arguments["x"].to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        found = engine(**arguments)
        torch.testing.assert_close(engine(**{**arguments, "x": arguments["x"].half()}), wanted, rtol=0.05, atol=0.05)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_the_model_and_the_engine_share_nothing():
    model, arguments = perturbed_model(), inputs()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    engine = dimr.optimize_for_inference(model, torch.float32)
    wanted = engine(**arguments)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(a, b) for a, b in zip(engine(**arguments), wanted, strict=True))


def test_results_have_no_gradient_and_are_ordinary_tensors():
    engine = dimr.optimize_for_inference(perturbed_model(), torch.float32)
    arguments = inputs()
    arguments["x"].requires_grad_()
    out = engine(**arguments)[-1]
    assert not out.requires_grad
    out.requires_grad_().square().sum().backward()
    assert list(engine.parameters()) == []
    with torch.inference_mode():
        assert torch.equal(dimr.optimize_for_inference(perturbed_model(), torch.float32)(**arguments)[-1], out)
    made = dimr.optimize_for_inference(perturbed_model(), torch.float32)
    with torch.inference_mode():
        made(**arguments)
    made(**arguments)


GUIDANCE = [None, dimr.Guidance("constant", 0.7), dimr.Guidance("power", 3.0, 2.0)]


@pytest.mark.parametrize("guidance", GUIDANCE)
@pytest.mark.parametrize("method", ["dpm-solver-fast", "dpm-solver-multistep"])
def test_same_samples(guidance, method):
    if method == "dpm-solver-multistep":
        pytest.importorskip("diffusers")
    model, labels = perturbed_model().eval(), [0, 3, 4]
    with torch.no_grad():  # predictions as small as a trained model's, so that steps do not blow rounding up
        for branch in model.branches:
            branch.head.conv.weight.mul_(0.1)

    def draw(predictor):
        generator = torch.Generator().manual_seed(5)
        return dimr.sample(predictor, labels, steps=4, method=method, guidance=guidance, generator=generator)

    wanted = draw(model)
    error = lambda predictor: difference([draw(predictor)], [wanted])  # noqa: E731
    assert error(dimr.optimize_for_inference(model, torch.float32)) < 1e-5
    lowered = copy.deepcopy(model).bfloat16()
    assert error(dimr.optimize_for_inference(model, torch.bfloat16)) <= 2 * error(lowered)


IMAGES, STEPS, LABELS = torch.zeros(2, 3, 8, 8), torch.tensor([1.0, 1000.0]), torch.tensor([0, 5])


@pytest.mark.parametrize(
    "arguments",
    [
        {"x": torch.zeros(2, 4, 8, 8)},
        {"x": IMAGES.double()},
        {"x": [1.0]},
        {"x": IMAGES.to("meta")},
        {"timestep": 0},
        {"timestep": torch.tensor([5.0, float("nan")])},
        {"timestep": torch.ones(3)},
        {"timestep": True},
        {"class_labels": torch.tensor([0, 6])},
        {"class_labels": torch.tensor([0])},
        {"class_labels": torch.zeros(2)},
    ],
)
def test_the_models_errors(arguments):
    model = perturbed_model()
    arguments = {"x": IMAGES, "timestep": STEPS, "class_labels": LABELS, **arguments}
    with pytest.raises((ValueError, TypeError)) as wanted:
        model(**arguments)
    with pytest.raises(type(wanted.value)) as found:
        dimr.optimize_for_inference(model, torch.float32)(**arguments)
    assert str(found.value) == str(wanted.value)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: dimr.optimize_for_inference(torch.nn.Linear(1, 1)), TypeError, "model must be a DiMR, got Linear"),
        (lambda m: dimr.optimize_for_inference(m, torch.float64), ValueError, "dtype must be one of torch.bfloat16"),
        (lambda m: dimr.optimize_for_inference(m, max_graphs=0), ValueError, "max_graphs must be .* got 0"),
        (lambda m: dimr.optimize_for_inference(m).half(), TypeError, "keeps the device and dtype"),
    ],
)
def test_bad_requests_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call(perturbed_model())


def test_report_and_memory(caplog):
    config = dataclasses.replace(TINY, norm="td_rms")
    model = perturbed_model(config)
    with caplog.at_level("INFO", logger="dimr.inference"):
        engine = dimr.optimize_for_inference(model)
        engine(**bfloat16(config))
    report = engine.report()
    assert json.loads(json.dumps(report)) == report
    assert report["cuda_graph"] == report["not_fused"]["CUDA graph"] == "CUDA graphs need a GPU, the model is on cpu"
    if extension_status().loaded:
        assert report["operators"]["td_rms_norm"] == "cpp"
        assert "td_rms_norm" not in report["not_fused"]
    else:
        assert "eager" in report["not_fused"]["td_rms_norm"]
    assert len(caplog.records) == len(report["not_fused"])  # each said once
    assert dimr.optimize_for_inference(model, cuda_graph=False).graph_status == "cuda_graph=False was asked for"
    count = dimr.count_parameters(model)
    assert 2 * count < report["memory"]["weights"] < 2.6 * count  # bfloat16, and norms in float32
    # tokens x width x (blocks + 1) x 2 bytes
    assert report["memory"]["features_per_sample"] == [5 * 16 * 4 * 2, 16 * 12 * 4 * 2, 64 * 8 * 4 * 2]
    engine.free_graphs()
