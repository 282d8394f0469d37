"""The engine on a GPU: recording and replaying, no synchronisation, memory given back."""

from __future__ import annotations

import copy

import pytest
import torch

import dimr
from dimr.sampling.plan import sample_in_batches
from tests.support.small_models import TINY, inputs, perturbed_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GUIDANCE = dimr.Guidance("constant", 0.5)


@pytest.fixture
def model(device):
    return perturbed_model().to(device).eval()


def arguments(device, dtype=torch.bfloat16, **options):
    found = {name: value.to(device) for name, value in inputs(**options).items()}
    return {**found, "x": found["x"].to(dtype)}


def error(found, wanted) -> float:
    pairs = zip(found, wanted, strict=True)
    return max(((a.float() - b).norm() / b.norm()).item() for a, b in pairs)


@pytest.mark.parametrize("graph", [True, False])
def test_same_function(model, graph, device):
    with torch.no_grad():
        wanted = model(**arguments(device, torch.float32))
        allowed = 2 * error(copy.deepcopy(model).bfloat16()(**arguments(device)), wanted)
    engine = dimr.optimize_for_inference(model, cuda_graph=graph)
    for _ in range(3):
        assert error(engine(**arguments(device)), wanted) <= allowed
    assert engine.report()["not_fused"] == ({} if graph else {"CUDA graph": "cuda_graph=False was asked for"})


def test_replays_equal_launches_and_take_new_inputs(model, device):
    engine, plain = (dimr.optimize_for_inference(model, cuda_graph=graph) for graph in (True, False))
    for batch in (1, 3, 1):
        for seed in (1, 2):
            given = arguments(device, batch=batch, seed=seed)
            for timestep in (given["timestep"], 250.0):
                given["timestep"] = timestep
                for a, b in zip(engine(**given), plain(**given), strict=True):
                    assert torch.equal(a, b)
    assert engine.graph_status == "on"


def test_graphs_are_few_and_their_memory_comes_back(model, device):
    engine = dimr.optimize_for_inference(model, max_graphs=2)
    allocated = []
    for _ in range(2):  # libraries' workspaces stay after the first round
        for batch in range(1, 6):
            engine(**arguments(device, batch=batch))
        assert len(engine.memory()["graphs"]) == 2
        engine.free_graphs()
        assert engine.memory()["graphs"] == {}
        allocated.append(torch.cuda.memory_allocated(device))
    assert allocated[0] == allocated[1]


@pytest.mark.parametrize("graph", [True, False])
def test_the_host_never_waits(model, graph, device):
    engine = dimr.optimize_for_inference(model, cuda_graph=graph)
    labels = torch.tensor([0, 3], device=device)
    noise = torch.randn(2, 3, 8, 8, device=device)
    dimr.sample(engine, labels, noise, steps=3, guidance=GUIDANCE)  # records
    torch.cuda.set_sync_debug_mode("error")
    try:
        dimr.sample(engine, labels, noise, steps=3, guidance=GUIDANCE)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_samples_in_batches_are_those_of_the_model(model):
    labels = torch.arange(5)
    draw = lambda predictor: sample_in_batches(predictor, labels, 7, 2, steps=3, guidance=GUIDANCE)  # noqa: E731
    wanted, eager = draw(model), draw(copy.deepcopy(model).bfloat16())
    found = draw(dimr.optimize_for_inference(model))
    assert error([found], [wanted]) <= 2 * error([eager], [wanted])


def test_streams_take_turns(model, device):
    engine, plain = (dimr.optimize_for_inference(model, cuda_graph=graph) for graph in (True, False))
    given = [arguments(device, seed=seed) for seed in range(4)]
    wanted = [plain(**g) for g in given]
    engine(**given[0])
    torch.cuda.synchronize()
    streams, found = [torch.cuda.Stream() for _ in given], []
    for stream, g in zip(streams, given, strict=True):
        with torch.cuda.stream(stream):
            found.append(engine(**g))
    torch.cuda.synchronize()
    for outputs, expected in zip(found, wanted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


def test_within_a_graph_of_the_callers_own(model, device):
    engine = dimr.optimize_for_inference(model)
    given = arguments(device)
    wanted = engine(**given)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = engine(**given)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_the_config_is_the_models(model):
    assert dimr.optimize_for_inference(model).config == TINY
