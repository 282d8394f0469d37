"""Compile every Triton kernel that a model needs before the first real call or the capture of a CUDA graph."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .dispatch import current_backend, unavailable_reason
from .nn import GEGLU, DepthwiseConv2d, PixelShuffleUpsample, TDGroupNorm, TDLayerNorm, TDRMSNorm

# Modules that launch Triton kernels themselves.
FUSED_MODULES = (DepthwiseConv2d, GEGLU, PixelShuffleUpsample, TDGroupNorm, TDLayerNorm, TDRMSNorm)


@dataclass(frozen=True)
class WarmupReport:
    """Result of :func:`warmup`; ``str(report)`` is a few lines for a log."""

    modules: dict[str, int] = field(default_factory=dict)
    """Class of a fused module -> how many of them the model called."""
    kernels: tuple[tuple[str, float], ...] = ()
    """Name and seconds of each kernel that Triton compiled, or read from its cache on disk, for this call."""
    seconds: float = 0.0
    skipped: str = ""
    """Reason that nothing was done; empty otherwise."""

    def __str__(self) -> str:
        if self.skipped:
            return f"warmup: nothing done: {self.skipped}"
        called = ", ".join(f"{count} {name}" for name, count in self.modules.items()) or "no fused module"
        lines = [f"warmup: {len(self.kernels)} kernels compiled in {self.seconds:.1f} s; the model called {called}"]
        return "\n".join([*lines, *(f"  {name}: {seconds:.2f} s" for name, seconds in self.kernels)])


def warmup(
    model: nn.Module, *inputs: Any, batch_sizes: Sequence[int] = (), training: bool | None = None, **named_inputs: Any
) -> WarmupReport:
    """Compile the Triton kernels that ``model(*inputs, **named_inputs)`` will need, so that no later call waits.

    The model runs once on these inputs, forward and, where ``training``, backward; then its fused modules run by
    themselves at the other ``batch_sizes``. Afterwards parameters, their ``.grad``, buffers and the states of random
    number generators are as they were. Call it as the model will be called: inside the same ``autocast``,
    ``use_backend`` and ``time_conditioning`` blocks, with inputs of the same dtypes and resolution.

    Triton compiles a kernel once for integers that are multiples of 16 and once for others, and ours take a sample's
    rows in steps that depend on the batch: a batch size that is not in the list may compile a few kernels again.

    Args:
        model: any module; what it calls besides this package's operators runs as it always does.
        inputs, named_inputs: of one call. Tensors whose first dimension is that of the first tensor carry the batch.
        batch_sizes: others that will occur, such as that of the last, smaller batch.
        training: whether gradients will be needed; None takes ``model.training``.

    Returns:
        A :class:`WarmupReport`. Where no kernel would be compiled, because the model is on a CPU or Triton is missing,
        nothing runs and ``report.skipped`` says why.

    Raises:
        ValueError: no tensor among the inputs, or a batch size below 1.
        RuntimeError: a CUDA graph is being captured, when it is too late to compile.

    Example:
        >>> from dimr_kernels import GEGLU
        >>> print(warmup(GEGLU(8, 16), torch.randn(4, 8), batch_sizes=(1,)))  # on a CPU
        warmup: nothing done: the inputs are on a CPU, where nothing is left to compile; kernels are compiled for a GPU
    """
    tensors = [x for x in (*inputs, *named_inputs.values()) if isinstance(x, Tensor)]
    if not tensors:
        raise ValueError("warmup: the model's inputs must hold a tensor, which tells the device and the batch size")
    if any(size < 1 for size in batch_sizes):
        raise ValueError(f"warmup: batch_sizes must be at least 1, got {list(batch_sizes)}")
    device = tensors[0].device
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("warmup: a CUDA graph is being captured; warm up before that")
    if skipped := _skip_reason(device):
        return WarmupReport(skipped=skipped)
    training = model.training if training is None else training
    start = time.perf_counter()
    with _compilations() as kernels, _unchanged(model, device):
        with _recorded_calls(model) as calls:
            _run(model, inputs, named_inputs, training)
        batch = tensors[0].shape[0] if tensors[0].dim() else 1
        for module, arguments, named in _distinct(calls):
            for size in dict.fromkeys(batch_sizes):
                if size != batch:
                    _run(module, *_resized((arguments, named), batch, size, device), training)
    modules: dict[str, int] = {}
    for module, *_ in calls:
        modules[type(module).__name__] = modules.get(type(module).__name__, 0) + 1
    return WarmupReport(modules, tuple(kernels), time.perf_counter() - start)


def _skip_reason(device: torch.device) -> str | None:
    if current_backend() == "eager":
        return "the backend 'eager' is in force, which compiles nothing"
    if device.type == "cpu" and current_backend() in ("auto", "cpp"):
        return "the inputs are on a CPU, where nothing is left to compile; kernels are compiled for a GPU"
    return unavailable_reason("triton", device)


def _run(module: nn.Module, inputs: Sequence[Any], named_inputs: dict[str, Any], training: bool) -> None:
    """Call the module, compute gradients if ``training``, and drop both: ``.grad`` stays as it is."""
    if not training:
        with torch.no_grad():
            module(*inputs, **named_inputs)
        return
    with torch.enable_grad():
        results = _tensors(module(*inputs, **named_inputs))
        outputs = [out for out in results if out.requires_grad]
        leaves: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
        leaves += [x for x in _tensors((inputs, named_inputs)) if x.requires_grad]
        if outputs and leaves:
            torch.autograd.grad(outputs, leaves, [torch.zeros_like(out) for out in outputs], allow_unused=True)


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _mapped(value, lambda x: found.append(x) or x)  # type: ignore[func-returns-value]
    return found


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``function`` to every tensor in tuples, lists and dictionaries, once to a tensor that occurs twice.

    A residual that is the input itself runs another kernel, so identity has to stay.
    """
    done: dict[int, Tensor] = {}

    def walk(value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in done:
                done[id(value)] = function(value)
            return done[id(value)]
        if type(value) in (tuple, list):
            return type(value)(map(walk, value))
        if type(value) is dict:
            return {name: walk(part) for name, part in value.items()}
        return value

    return walk(value)


_triton_hooks = threading.RLock()
Call = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


@contextlib.contextmanager
def _recorded_calls(model: nn.Module) -> Iterator[list[Call]]:
    """Record calls of fused modules inside the block, with meta tensors for their tensors."""
    calls: list[Call] = []

    def abstract(x: Tensor) -> Tensor:
        shape, strides = x.shape, x.stride()
        return torch.empty_strided(shape, strides, dtype=x.dtype, device="meta").requires_grad_(x.requires_grad)

    def record(module: nn.Module, inputs: tuple[Any, ...], named_inputs: dict[str, Any]) -> None:
        calls.append((module, *_mapped((inputs, named_inputs), abstract)))

    # A hook on the norm inside an upsampling would take its kernel away; it runs with the upsampling.
    inside = {id(module.norm_out) for module in model.modules() if isinstance(module, PixelShuffleUpsample)}
    fused = [m for m in model.modules() if isinstance(m, FUSED_MODULES) and id(m) not in inside]
    handles = [module.register_forward_pre_hook(record, with_kwargs=True) for module in fused]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _distinct(calls: Sequence[Call]) -> list[Call]:
    """Keep one call of each kind: equal class, options, parameters and inputs lead to the same kernels."""

    def describe(x: Tensor) -> Any:
        return x.dtype, tuple(x.shape), x.stride(), x.requires_grad

    found: dict[str, Call] = {}
    for module, inputs, named_inputs in calls:
        tensors = _tensors((inputs, named_inputs))
        aliases = [next(i for i, other in enumerate(tensors) if other is x) for x in tensors]
        parameters = [(name, describe(p)) for name, p in module.named_parameters()]
        kind = (type(module).__name__, repr(module), parameters, [describe(x) for x in tensors], aliases)
        found.setdefault(str(kind), (module, inputs, named_inputs))
    return list(found.values())


def _resized(call: tuple[Any, Any], batch: int, size: int, device: torch.device) -> tuple[Any, Any]:
    """Make zeros for the recorded tensors, with another batch size and otherwise the same strides."""

    def zeros(x: Tensor) -> Tensor:
        shape = (size, *x.shape[1:]) if x.dim() and x.shape[0] == batch else x.shape
        made = torch.empty_strided(shape, x.stride(), dtype=x.dtype, device=device).zero_()
        return made.requires_grad_(x.requires_grad)

    return _mapped(call, zeros)


@contextlib.contextmanager
def _unchanged(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore buffers (a batch norm's averages, say) and random number generators after the block."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


@contextlib.contextmanager
def _compilations() -> Iterator[list[tuple[str, float]]]:
    """List name and seconds of each kernel that Triton compiles inside the block; one thread enters at a time."""
    from triton import knobs

    found: list[tuple[str, float]] = []
    started: list[float] = []

    def begin(**details: Any) -> Any:
        started.append(time.perf_counter())
        return before(**details) if before is not None else None

    def end(**details: Any) -> Any:
        seconds = time.perf_counter() - started.pop() if started else 0.0
        found.append((details["fn"].name, seconds))
        return after(**details) if after is not None else None

    with _triton_hooks:
        before, after = knobs.runtime.jit_cache_hook, knobs.runtime.jit_post_compile_hook
        knobs.runtime.jit_cache_hook, knobs.runtime.jit_post_compile_hook = begin, end
        try:
            yield found
        finally:
            knobs.runtime.jit_cache_hook, knobs.runtime.jit_post_compile_hook = before, after
