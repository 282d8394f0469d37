"""How a call is timed: rotating random inputs, synchronised, and on a GPU also the kernels alone under a CUDA graph."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

ROUNDS = 30
WARMUP_ROUNDS = 3
# More bytes than this go round before an input is used again, so a GPU's L2 cache (50 MB on an H100) is cold.
ROTATED_BYTES = {"cuda": 256 << 20, "cpu": 32 << 20}
MOST_COPIES = 32


def copies_to_rotate(bytes_per_call: int, device: torch.device) -> int:
    return max(2, min(MOST_COPIES, -(-ROTATED_BYTES[device.type] // max(bytes_per_call, 1))))


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def kernel_seconds(calls: Sequence[Callable[[], object]], repeats: int = 10) -> float:
    """GPU time of one call, without the host: all calls captured in one CUDA graph, replayed, timed by events."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return _median_event_seconds(graph.replay, repeats) / len(calls)


def _median_event_seconds(run: Callable[[], object], repeats: int) -> float:
    run()
    seconds = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return statistics.median(seconds)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read plus written, of a large copy on this machine: the ceiling for memory-bound work."""
    size = (1 << 30) if device.type == "cuda" else (1 << 27)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    if device.type == "cuda":
        seconds = _median_event_seconds(lambda: target.copy_(source), 10)
    else:
        seconds = _median_host_seconds(lambda: target.copy_(source), 5)
    return 2 * size / seconds


def _median_host_seconds(run: Callable[[], object], repeats: int) -> float:
    run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
