"""Concurrent threads and processes give the same bits as sequential calls, and each has its own settings."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import dimr_kernels as dk
from dimr_kernels import dispatch
from dimr_kernels.dispatch import unavailable_reason
from dimr_kernels.launch import forget_launches
from dimr_kernels.ops import time_gate
from dimr_kernels.ops.time_gate import current_timestep
from tests.support.operators import EXAMPLES
from tests.support.parity import results_of

THREADS = 8
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def at_once(*tasks: Callable[[], object]) -> list[object]:
    """Start all tasks together, each in a thread of its own, and return their results; raise the first error."""
    start = threading.Barrier(len(tasks))

    def begin(task: Callable[[], object]) -> object:
        start.wait()
        return task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        return [future.result() for future in [pool.submit(begin, task) for task in tasks]]


def backends(name: str) -> list[str]:
    """List an example's backends that run here. Compiled kernels need a GPU; Triton's interpreter takes turns."""
    fused = EXAMPLES[name].fused
    usable = fused == "auto" or unavailable_reason(fused, DEVICE) is None
    return ["eager", *([fused] if usable else [])]


CALLS = [(name, backend) for name in EXAMPLES for backend in backends(name)]


def results(name: str, backend: str, seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)  # all threads share the process's generator
    example = EXAMPLES[name]
    return results_of(example.function, example.make_inputs(DEVICE, torch.float32), backend)


def inputs_of(name: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return EXAMPLES[name].make_inputs(DEVICE, torch.float32)


def slow_if_interpreted(name: str, backend: str) -> object:
    slow = backend == "triton" and DEVICE.type == "cpu" and name != "geglu"
    return pytest.param(name, backend, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize(("name", "backend"), [slow_if_interpreted(*call) for call in CALLS])
def test_threads_compute_the_same_bits(name, backend):
    """Include first calls: everything cached by shape is cleared before."""
    inputs = inputs_of(name)
    expected = results_of(EXAMPLES[name].function, inputs, backend)
    forget_launches()
    for found in at_once(*[lambda: results_of(EXAMPLES[name].function, inputs, backend)] * THREADS):
        for key, value in expected.items():
            assert torch.equal(found[key], value), key


@pytest.mark.slow
def test_different_operators_and_settings_at_once():
    """Give each thread its own settings, while another thread keeps clearing the cached launches."""
    inputs = {name: inputs_of(name) for name, _ in CALLS}
    expected = {(name, backend): results_of(EXAMPLES[name].function, inputs[name], backend) for name, backend in CALLS}
    done = threading.Event()

    def forget() -> None:
        while not done.wait(0.001):
            forget_launches()

    def compute(name: str, backend: str) -> None:
        with dk.time_conditioning(float(len(name))):
            found = results_of(EXAMPLES[name].function, inputs[name], backend)
            assert current_timestep("test") == float(len(name))
        assert dk.current_backend() == "auto"
        for key, value in expected[name, backend].items():
            assert torch.equal(found[key], value), (name, backend, key)

    forgetting = threading.Thread(target=forget)
    forgetting.start()
    try:
        at_once(*[lambda name=name, backend=backend: compute(name, backend) for name, backend in CALLS])
    finally:
        done.set()
        forgetting.join()


@pytest.mark.parametrize("scoped", [dispatch._backend, time_gate._timestep], ids=["backend", "timestep"])
def test_blocks_that_overlap_leave_nothing_behind(scoped):
    """Leave blocks in another order than they were entered; torch.compile reads the setting that remains."""
    before = scoped.traced
    first, second = scoped.set_to("eager"), scoped.set_to("triton")
    entered, left = threading.Event(), threading.Event()

    def one() -> None:
        with first:
            entered.set()
            left.wait(10)

    thread = threading.Thread(target=one)
    with second:
        pass
    thread.start()
    entered.wait(10)
    with second:
        left.set()
        thread.join()
        assert scoped.get() == "triton"
    assert scoped.traced == before
    assert scoped.get() == before


def test_one_block_entered_by_many_threads():
    block = dk.use_backend("eager")
    inside = threading.Barrier(THREADS)

    def enter() -> None:
        with block:
            inside.wait(10)
            assert dk.current_backend() == "eager"
            inside.wait(10)
        assert dk.current_backend() == "auto"

    at_once(*[enter] * THREADS)
    assert dispatch._backend.traced == "auto"


def test_warmups_at_once_leave_no_hooks():
    knobs = pytest.importorskip("triton").knobs
    warmup = importlib.import_module("dimr_kernels.warmup")
    before = knobs.runtime.jit_cache_hook, knobs.runtime.jit_post_compile_hook
    inside = threading.Event()

    def one(wait_for: threading.Event | None) -> None:
        with warmup._compilations():
            inside.set()
            if wait_for is not None:
                wait_for.wait(0.5)

    over = threading.Event()
    at_once(lambda: one(over), lambda: (inside.wait(10), one(None), over.set()))
    assert (knobs.runtime.jit_cache_hook, knobs.runtime.jit_post_compile_hook) == before


def _child(queue: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    for name, backend in CALLS:
        found = results(name, backend, seed=3)
        queue.put((name, backend, {key: value.cpu().numpy() for key, value in found.items()}))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_processes_compute_the_same_bits(method):
    """Run two processes at once. A forked process inherits its parent's compiled kernels and caches."""
    if method == "fork" and (DEVICE.type == "cuda" or not hasattr(os, "fork")):
        pytest.skip("CUDA does not survive a fork, and some systems have none")
    expected = {(name, backend): results(name, backend, seed=3) for name, backend in CALLS}
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    children = [context.Process(target=_child, args=(queue,)) for _ in range(2)]
    for child in children:
        child.start()
    for _ in range(len(children) * len(CALLS)):
        name, backend, found = queue.get(timeout=300)
        for key, value in expected[name, backend].items():
            assert torch.equal(torch.from_numpy(found[key]), value.cpu()), (name, backend, key)
    for child in children:
        child.join()
        assert child.exitcode == 0
