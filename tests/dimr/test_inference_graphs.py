"""Recorded calls, with a stand-in for CUDA's graphs: replaying computes again on the memory of the recording."""

from __future__ import annotations

import contextlib
import dataclasses
import threading

import pytest
import torch

import dimr
import dimr_kernels as dk
from dimr.inference.graphs import GraphCache
from tests.support.small_models import TINY, inputs, perturbed_model


class StandIn:
    """Records like CUDA: what replays reads and writes the tensors that were there at the time of recording."""

    def __init__(self):
        self.recorded = self.replayed = self.released = 0
        self.fails = self.within = self.callers_own = self.warm = False

    def is_recorded_by_caller(self):
        return self.callers_own

    def warm_up(self, function):
        function()
        self.warm = True

    def record(self, function):
        assert self.warm
        self.warm = False
        if self.fails:
            raise RuntimeError("operation not permitted\nmore")
        self.recorded += 1
        results = function()

        def replay():
            assert self.within
            self.replayed += 1
            for result, new in zip(results, function(), strict=True):
                result.copy_(new)

        return replay, results, 100

    @contextlib.contextmanager
    def turn(self):
        assert not self.within, "two calls at once"
        self.within = True
        yield
        self.within = False

    def release(self):
        self.released += 1


@pytest.fixture
def recorder():
    return StandIn()


@pytest.fixture
def engine(recorder):
    made = dimr.optimize_for_inference(perturbed_model(), torch.float32)
    made._graphs = GraphCache(made._compute, recorder, limit=2)
    return made


@pytest.fixture(scope="module")
def plain():
    return dimr.optimize_for_inference(perturbed_model(), torch.float32)


def assert_same(found, wanted):
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_replays_take_the_new_inputs(engine, plain, recorder):
    for seed in (1, 2, 3):
        arguments = inputs(seed=seed)
        assert_same(engine(**arguments), plain(**arguments))
    assert (recorder.recorded, recorder.replayed) == (1, 3)


@pytest.mark.parametrize("channels", [1, 3])  # of one channel, a prediction needs no copy to be contiguous
def test_results_are_the_callers_own(recorder, channels):
    config = dataclasses.replace(TINY, in_channels=channels)
    engine = dimr.optimize_for_inference(perturbed_model(config), torch.float32)
    engine._graphs = GraphCache(engine._compute, recorder, limit=2)
    first = engine(**inputs(config, seed=1))
    kept = [out.clone() for out in first]
    engine(**inputs(config, seed=2))
    assert_same(first, kept)
    first[-1].zero_()
    assert engine(**inputs(config, seed=1))[-1].any()


def test_one_recording_for_each_kind_of_call(engine, plain, recorder):
    """Batch sizes and shared timesteps are kinds; the labels' dtype, a timestep's form and inference mode are not."""
    batch = inputs()
    shared = {**batch, "timestep": 300.0}
    ways = (300, torch.tensor(300.0), torch.tensor([300]))
    for arguments in (batch, shared, {**batch, "class_labels": batch["class_labels"].int()}):
        assert_same(engine(**arguments), plain(**arguments))
    for timestep in ways:
        with torch.inference_mode():
            assert_same(engine(**{**batch, "timestep": timestep}), plain(**shared))
    assert recorder.recorded == 2
    with dk.use_backend("eager"):
        engine(**batch)
    assert recorder.recorded == 3


def test_recorded_in_inference_mode_and_replayed_outside(engine, plain):
    with torch.inference_mode():
        engine(**inputs(seed=1))
    assert_same(engine(**inputs(seed=2)), plain(**inputs(seed=2)))


def test_the_least_recently_used_makes_room(engine, recorder):
    for batch in (1, 2, 1, 3, 1):
        engine(**inputs(batch=batch))
    assert recorder.recorded == 3  # 3 took the place of 2
    engine(**inputs(batch=2))
    assert recorder.recorded == 4
    sizes = engine.memory()["graphs"]
    assert list(sizes) == ["1x3x8x8 1 1", "2x3x8x8 2 2"]
    assert set(sizes.values()) == {100}


def test_recordings_can_be_freed(engine, recorder):
    engine(**inputs())
    engine.free_graphs()
    assert engine.memory()["graphs"] == {}
    assert recorder.released == 1
    engine(**inputs())
    assert recorder.recorded == 2


def test_without_recordings_where_they_fail(engine, plain, recorder, caplog):
    recorder.fails = True
    for _ in range(2):
        assert_same(engine(**inputs()), plain(**inputs()))
    assert engine.graph_status == "operation not permitted"
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "no CUDA graphs, calls are launched one by one: operation not permitted"
    ]


def test_an_error_of_the_call_itself_is_not_hidden(engine):
    with dk.use_backend("cuda"), pytest.raises(dk.BackendError, match="'cuda' was asked for"):
        engine(**inputs())
    assert engine.graph_status == "on" or engine._graphs.problem is None


def test_an_empty_batch_is_not_recorded(engine, recorder):
    assert [len(out) for out in engine(**inputs(batch=0))] == [0, 0, 0]
    assert recorder.recorded == 0


def test_a_callers_own_recording_takes_the_launches(engine, plain, recorder):
    recorder.callers_own = True
    assert_same(engine(**inputs()), plain(**inputs()))
    assert recorder.recorded == 0


def test_threads_take_turns(engine, plain):
    batches = [inputs(seed=seed) for seed in range(4)]
    found = [None] * 4

    def call(i):
        found[i] = engine(**batches[i])

    threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for out, arguments in zip(found, batches, strict=True):
        assert_same(out, plain(**arguments))


def test_samples_from_replays(engine, plain, recorder):
    draw = lambda predictor: dimr.sample(  # noqa: E731
        predictor, [0, 1], steps=5, guidance=dimr.Guidance("constant", 1.0), generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(draw(engine), draw(plain))
    assert (recorder.recorded, recorder.replayed) == (1, 5)
