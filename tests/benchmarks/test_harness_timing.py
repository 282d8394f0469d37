"""Timers, with a stand-in for everything that needs a GPU."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import ClassVar

import pytest
import torch

from benchmarks import timing

from .harness import CPU


@pytest.mark.parametrize(
    ("bytes_per_call", "copies"), [(1, 512), (400, 500), (2000, 100), (66_667, 3), (150_000, 2), (10**9, 2)]
)
def test_copies(bytes_per_call, copies):
    assert timing.copies_to_rotate(bytes_per_call, 200_000, 512) == copies


def test_host_time_is_taken_on_an_idle_device(monkeypatch):
    events = []
    clock = iter(range(1000))
    monkeypatch.setattr(timing, "synchronise", lambda device: events.append("wait"))
    monkeypatch.setattr(timing, "clock", lambda: events.append("clock") or next(clock))
    seconds = timing.host_seconds([lambda: events.append("a"), lambda: events.append("b")], CPU, rounds=3)
    assert seconds == 1
    turn = ["wait", "clock", "{}", "clock"]
    assert events == [e.format(name) for name in "aba" for e in turn] + ["wait"]


@pytest.mark.parametrize(
    ("least", "pages", "calls"), [(2, [900, 900, 900, 0, 0], 4), (5, [0] * 9, 5), (1, [900] * 99, 50)]
)
def test_warm_up_ends_where_memory_is_there(monkeypatch, least, pages, calls):
    mapped = []
    monkeypatch.setattr(timing, "_mapped_pages", lambda: sum(mapped))
    timing.warm_up(lambda: mapped.append(pages[len(mapped)]), least)
    assert len(mapped) == calls


class Graph:
    """Stands in for a CUDA graph: a replay checks that the results of every call are still held."""

    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        assert all(result.held > 0 for result in Result.made)


class Result:
    made: ClassVar[list[Token]] = []

    class Token:
        held = 1

    def __init__(self) -> None:
        self.token = Result.Token()
        Result.made.append(self.token)

    def __del__(self) -> None:
        self.token.held = 0


class Event:
    def __init__(self, enable_timing: bool) -> None:
        pass

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return 6.0


@pytest.fixture
def cuda(monkeypatch):
    """Provide the parts of torch.cuda that the timers use; ``refused`` makes capture fail twice, as torch does."""
    seen = {"slept": 0, "refused": False, "stream": object(), "captured_on": None}

    @contextmanager
    def graph(captured, stream):
        seen["captured_on"] = stream
        Result.made.clear()
        try:
            if seen["refused"]:
                raise RuntimeError("operation not permitted when stream is capturing\nmore")
            yield
        finally:
            if seen["refused"]:
                raise RuntimeError("capture was invalidated")

    def sleep(cycles):
        seen["slept"] += 1

    for name, value in {
        "CUDAGraph": Graph, "graph": graph, "Event": Event, "synchronize": lambda *device: None,
        "current_stream": lambda: seen["stream"], "_sleep": sleep,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    return seen


def test_kernels_are_timed_in_a_graph_that_keeps_results_apart(cuda):
    seconds, how = timing.kernel_seconds([Result, Result, Result])
    assert how == "cuda graph"
    assert seconds == pytest.approx(0.006 / 3)
    assert cuda["captured_on"] is cuda["stream"]
    assert len(Result.made) == 3


def test_without_a_graph_the_reason_is_kept(cuda):
    cuda["refused"] = True
    seconds, how = timing.kernel_seconds([list, list])
    assert how == "events, no graph: operation not permitted when stream is capturing"
    assert seconds == pytest.approx(0.006)
    assert cuda["slept"] == 2


def test_no_memory_is_no_reason_for_events(cuda, monkeypatch):
    def exhausted(calls):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(timing, "_graph_seconds", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        timing.kernel_seconds([list])


def test_ceilings_here(monkeypatch):
    """Check that both ceilings use the timer of the calls, and count the bytes or operations."""
    monkeypatch.setattr(timing, "host_seconds", lambda calls, device, rounds: 0.5)
    monkeypatch.setattr(torch, "randn", lambda *shape, device: torch.zeros(*shape, device=device))
    assert timing.copy_bandwidth(CPU) == 2 * 4 * 2**25 / 0.5
    assert timing.matmul_flops(CPU, torch.float32) == 2 * 1024**3 / 0.5


@pytest.mark.parametrize("threads", [1, 3])
def test_multiply_adds_are_counted_on_every_thread(monkeypatch, threads):
    if not timing.extension_status().loaded:
        pytest.skip("the extension is missing")
    from dimr_kernels import _C

    calls = []

    def counted(steps):
        calls.append(steps)
        return 100.0 * steps

    monkeypatch.setattr(_C, "multiply_adds", counted)
    monkeypatch.setattr(timing, "host_seconds", lambda calls, device, rounds: calls[0]() or 0.5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert timing.multiply_add_flops() == threads * 100 * timing.MULTIPLY_ADD_STEPS / 0.5
    assert calls == [1, *[timing.MULTIPLY_ADD_STEPS] * threads]


def test_multiply_adds_take_time_in_proportion():
    if not timing.extension_status().loaded:
        pytest.skip("the extension is missing")
    from dimr_kernels import _C

    def seconds(steps):
        found = []
        for _ in range(5):
            start = time.thread_time()
            _C.multiply_adds(steps)
            found.append(time.thread_time() - start)
        return min(found)

    assert _C.multiply_adds(30) == 10 * _C.multiply_adds(3) > 0
    assert seconds(4_000_000) > 2 * seconds(1_000_000)  # the compiler kept the loop
