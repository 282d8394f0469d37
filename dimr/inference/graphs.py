"""A cache of CUDA graphs, one per input shape and backend, recorded at the first call and replayed afterwards.

The graphs share one memory pool, as large as the largest graph needs: they are never replayed at the same time, and
their results are copied out before the next replay.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..utils import first_line

logger = logging.getLogger(__name__)

WARM_UPS = 2  # the first compiles and chooses algorithms, the second only launches
Tensors = tuple[Tensor, ...]


class Recorder(Protocol):
    """Interface of recording and replaying calls; tests on a CPU have their own implementation."""

    def is_recorded_by_caller(self) -> bool:
        """Return True while the caller records a graph of its own, which cannot contain a replay."""

    def warm_up(self, function: Callable[[], Tensors]) -> None:
        """Run ``function`` so that one-time work (compilation, choice of algorithms) is done."""

    def record(self, function: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors, int]:
        """Record ``function``; return a function that replays it, its results, and the bytes reserved for it."""

    def turn(self) -> Any:
        """Return a context in which nothing else uses the recorded memory."""

    def release(self) -> None:
        """Free the memory. May synchronise; no earlier recording may be replayed afterwards."""


class CudaRecorder:
    """Records and replays with CUDA graphs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self._stream = torch.cuda.Stream(device)
        self._idle = torch.cuda.Event()

    def is_recorded_by_caller(self) -> bool:
        return torch.cuda.is_current_stream_capturing()

    def warm_up(self, function: Callable[[], Tensors]) -> None:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):  # libraries keep one workspace per stream
            for _ in range(WARM_UPS):
                function()
        current.wait_stream(self._stream)

    def record(self, function: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors, int]:
        torch.cuda.empty_cache()
        reserved = torch.cuda.memory_reserved(self._device)
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(self._device),
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
        ):
            results = function()
        self._pool = graph.pool()
        return graph.replay, results, torch.cuda.memory_reserved(self._device) - reserved

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Serialise callers on different streams on the device, without blocking the host."""
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(self._idle)
        with torch.cuda.device(self._device):
            yield
        self._idle.record(stream)

    def release(self) -> None:
        torch.cuda.synchronize(self._device)
        self._pool = None
        torch.cuda.empty_cache()


class _Recording(NamedTuple):
    inputs: Tensors
    replay: Callable[[], None]
    results: Tensors
    bytes: int


class GraphCache:
    """Replays ``compute(*inputs)`` from the ``limit`` most recently used recordings.

    Args:
        compute: a function of tensors that launches the same kernels for inputs of the same shapes and ``key``.
        recorder: see :class:`Recorder`.
        limit: number of recordings kept.
    """

    def __init__(self, compute: Callable[..., Tensors], recorder: Recorder, limit: int) -> None:
        self._compute = compute
        self._recorder = recorder
        self._limit = limit
        self._recordings: OrderedDict[Hashable, _Recording] = OrderedDict()
        self._lock = threading.Lock()
        self.problem: str | None = None
        """The reason why recording failed; from then on every call is computed directly."""

    def __call__(self, key: Hashable, *inputs: Tensor) -> Tensors:
        """Return contiguous results that belong to the caller."""
        if self._recorder.is_recorded_by_caller():
            return self._directly(*inputs)
        with self._lock:
            kind = (key, *(tuple(x.shape) for x in inputs))
            recording = self._recordings.get(kind) or self._record(kind, inputs)
            if recording is None:
                return self._directly(*inputs)
            self._recordings.move_to_end(kind)
            with self._recorder.turn():
                for static, x in zip(recording.inputs, inputs, strict=True):
                    static.copy_(x)
                recording.replay()
                return tuple(x.clone(memory_format=torch.contiguous_format) for x in recording.results)

    def _directly(self, *inputs: Tensor) -> Tensors:
        return tuple(x.contiguous() for x in self._compute(*inputs))

    def _record(self, kind: Hashable, inputs: Tensors) -> _Recording | None:
        if self.problem is not None:
            return None
        with torch.inference_mode(False), torch.no_grad():  # the inputs are written to in either mode
            static = tuple(x.clone() for x in inputs)
            self._recorder.warm_up(lambda: self._compute(*static))
            while len(self._recordings) >= self._limit:
                self._recordings.popitem(last=False)
            try:
                replay, results, size = self._recorder.record(lambda: self._compute(*static))
            except RuntimeError as error:
                self._recordings.clear()
                self.problem = first_line(error)
                logger.warning("no CUDA graphs, calls are launched one by one: %s", self.problem)
                return None
        self._recordings[kind] = _Recording(static, replay, results, size)
        return self._recordings[kind]

    def free(self) -> None:
        """Drop every recording and free its memory; later calls record again."""
        with self._lock:
            self._recordings.clear()
            self._recorder.release()

    def sizes(self) -> dict[str, int]:
        """Return the bytes that each recording added to the shared pool, by the shapes of its inputs."""
        with self._lock:
            return {
                " ".join("x".join(map(str, x.shape)) for x in recording.inputs): recording.bytes
                for recording in self._recordings.values()
            }
