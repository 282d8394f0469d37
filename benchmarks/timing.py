"""Timing of a call: rotating random inputs on a cold cache, synchronised, and on a GPU also the kernels alone.

Everything on a GPU runs on one side stream (:func:`stream`): a backward's kernels go to the stream of their forward,
so a CUDA graph can record a backward only on the stream that the forward ran on.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from dimr_kernels.dispatch import extension_status

try:
    import resource
except ModuleNotFoundError:  # Windows
    resource = None  # type: ignore[assignment]

Call = Callable[[], Any]

clock = time.perf_counter
"""Of calls on the host; with one thread of a CPU that thread's own time, which other processes do not disturb."""

ROUNDS = 20
HOST_ROUNDS = 50
CEILING_ROUNDS = 10
MULTIPLY_ADD_STEPS = 5_000_000  # about 20 ms
GRAPH_REPLAYS = 10
MOST_WARM_UP_ROUNDS = 50
FEW_PAGES = 64
# Bytes between two uses of the same memory, in sizes of the L2 cache.
COLD = 4
ROTATED_ON_CPU = 32 << 20
MOST_COPIES = {"cuda": 512, "cpu": 16}
SLEEP_CYCLES = 20_000_000  # about 10 ms, in which the host fills the queue


def rotated_bytes(device: torch.device) -> int:
    if device.type == "cpu":
        return ROTATED_ON_CPU
    return COLD * torch.cuda.get_device_properties(device).L2_cache_size


def copies_to_rotate(bytes_per_call: int, rotated: int, most: int) -> int:
    """Return the number of calls with separate memory to rotate through, at least two."""
    return max(2, min(most, -(-rotated // max(bytes_per_call, 1))))


@functools.cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def stream(device: torch.device) -> AbstractContextManager[Any]:
    return torch.cuda.stream(_side_stream(device)) if device.type == "cuda" else nullcontext()


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_bytes(device: torch.device) -> int | None:
    """Return the memory that can still be allocated, torch's own cache included; None on a CPU."""
    if device.type != "cuda":
        return None
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def _mapped_pages() -> int:
    """Count the pages that the system has given this process; 0 where it does not say."""
    return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def warm_up(call: Call, rounds: int) -> None:
    """Call so often, and on until a call needs no new pages from the system: its results then lie where others did."""
    for i in range(MOST_WARM_UP_ROUNDS):
        mapped = _mapped_pages()
        call()
        if i + 1 >= rounds and _mapped_pages() - mapped < FEW_PAGES:
            return


def host_seconds(calls: Sequence[Call], device: torch.device, rounds: int = HOST_ROUNDS) -> float:
    """Time the return of a call, without waiting for the device, which is idle before each call."""
    seconds = []
    for i in range(rounds):
        call = calls[i % len(calls)]
        synchronise(device)
        start = clock()
        call()
        seconds.append(clock() - start)
    synchronise(device)
    return statistics.median(seconds)


def kernel_seconds(calls: Sequence[Call]) -> tuple[float, str]:
    """GPU time of one call without the host, and how it was taken: from a CUDA graph, else why not and from events."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    try:
        return _graph_seconds(calls), "cuda graph"
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # an operator that waits for the device, for example
        torch.cuda.synchronize()
        cause = error.__context__ or error  # ending a capture that failed raises again
        return _queued_seconds(calls), f"events, no graph: {(str(cause).splitlines() or [repr(cause)])[0]}"


def _graph_seconds(calls: Sequence[Call]) -> float:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        # Results are kept: freed ones would all lie in the same memory, which then stays in the cache.
        results = [call() for call in calls]
    seconds = _median_event_seconds(graph.replay, GRAPH_REPLAYS) / len(calls)
    del results
    return seconds


def _queued_seconds(calls: Sequence[Call]) -> float:
    """Make the GPU sleep while the host queues calls, which then run back to back if the host was fast enough."""
    seconds = []
    for call in calls[:GRAPH_REPLAYS]:
        torch.cuda._sleep(SLEEP_CYCLES)
        seconds.append(_event_seconds(call))
    return statistics.median(seconds)


def _median_event_seconds(run: Call, repeats: int) -> float:
    run()
    return statistics.median(_event_seconds(run) for _ in range(repeats))


def _event_seconds(run: Call) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def peak_memory(run: Call, device: torch.device) -> int:
    """Return the peak of bytes allocated during a call, above those before it."""
    synchronise(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    synchronise(device)
    return torch.cuda.max_memory_allocated(device) - before


def _seconds(calls: Sequence[Call], device: torch.device) -> float:
    """Time a ceiling as the kernels are timed, so that fractions are comparable."""
    return kernel_seconds(calls)[0] if device.type == "cuda" else host_seconds(calls, device, CEILING_ROUNDS)


def copy_bandwidth(device: torch.device) -> float:
    """Measure bytes per second, read plus written, of a large copy: the ceiling for memory-bound work.

    The faster of the driver's copy and an elementwise kernel's.
    """
    count = (1 << 28) if device.type == "cuda" else (1 << 25)  # 1 GiB and 128 MiB of float32, far beyond any cache
    with stream(device):
        source = torch.randn(count, device=device)
        target = torch.empty_like(source)
        copies: tuple[Call, ...] = (lambda: target.copy_(source), lambda: torch.neg(source, out=target))
        return 2 * source.nbytes / min(_seconds([copy], device) for copy in copies)


def multiply_add_flops() -> float | None:
    """Measure operations per second of multiply-adds that touch no memory, on torch's number of threads.

    None without the compiled extension, whose best instruction set they use.
    """
    if not extension_status().loaded:
        return None
    from dimr_kernels import _C

    threads = torch.get_num_threads()
    operations = threads * _C.multiply_adds(1)

    def call() -> None:
        if threads == 1:
            _C.multiply_adds(MULTIPLY_ADD_STEPS)
            return
        with ThreadPoolExecutor(threads) as pool:  # the calls do not hold the interpreter's lock
            list(pool.map(_C.multiply_adds, [MULTIPLY_ADD_STEPS] * threads))

    return MULTIPLY_ADD_STEPS * operations / host_seconds([call], torch.device("cpu"), CEILING_ROUNDS)


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measure operations per second of a large square matrix product of random numbers."""
    n = 8192 if device.type == "cuda" else 1024
    with stream(device):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        return 2 * n**3 / _seconds([lambda: a @ b], device)
