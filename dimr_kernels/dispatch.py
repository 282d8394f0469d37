"""Choice of the implementation that runs: ``auto``, ``eager``, ``triton``, ``cuda`` or ``cpp``.

``auto`` takes an operator's fused form where it runs and is worth its call, and the eager definition elsewhere. Any
other choice is binding: if it cannot run, :class:`BackendError` says why. ``cpp`` and ``cuda`` are in the compiled
extension, for CPU and for GPU tensors; for the pixel shuffles of CPU tensors ``cuda`` means ``cpp``.
"""

from __future__ import annotations

import contextvars
import importlib.util
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch

T = TypeVar("T")
AnyFunction = TypeVar("AnyFunction", bound=Callable[..., object])

BACKENDS = ("auto", "eager", "triton", "cuda", "cpp")
BACKEND_VARIABLE = "DIMR_KERNELS_BACKEND"
FUSED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OLDEST_CAPABILITY = (8, 0)

TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
# Triton reads this variable when a kernel is decorated, so it is fixed for the life of the process.
TRITON_INTERPRETS = os.environ.get("TRITON_INTERPRET", "0") == "1"


class Forms(NamedTuple):
    """The fused forms of an operator, best first; each is named after the backend that asks for it."""

    gpu: tuple[str, ...]
    cpu: tuple[str, ...]


_TRITON = Forms(gpu=("triton",), cpu=("cpp", "triton"))  # on CPU tensors: Triton's interpreter, if asked for
_EXTENSION = Forms(gpu=("cuda",), cpu=("cpp", "cuda"))

# Attention is not listed: its fused forms are torch's and flash-attn's (ops/attention_backends.py).
FUSED_FORMS = {
    "depthwise_conv2d": _TRITON,
    "geglu": _TRITON,
    "geglu_linear": _TRITON,
    "pixel_shuffle_add": _EXTENSION,
    "pixel_unshuffle": _EXTENSION,
    "pixel_shuffle_td_norm_add": _TRITON,
    "td_group_norm": _TRITON,
    "td_layer_norm": _TRITON,
    "td_rms_norm": _TRITON,
    "inference.depthwise_conv2d": _TRITON,
    "inference.pixel_shuffle_td_norm_add_": _TRITON,
    "inference.td_norm": _TRITON,
}
# "auto" never takes these: Triton's interpreter is for tests.
_ONLY_ON_REQUEST = {("cpu", "triton")}


class BackendError(RuntimeError):
    """The implementation asked for does not exist or cannot run here."""


def constant_when_traced(function: AnyFunction) -> AnyFunction:
    """Mark a function whose result torch.compile keeps as a constant (``torch.compiler.assume_constant_result``).

    Torch's decorator sets the same mark, but imports Dynamo first, which takes about as long as importing torch.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_when_traced
def is_exporting() -> bool:
    """Return True in ``torch.export``. Dynamo before torch 2.12 takes torch's for True under torch.compile as well."""
    return torch.compiler.is_exporting()


class ScopedValue(Generic[T]):
    """A value with a default that ``with scoped.set_to(v):`` changes for the block, also in traced code.

    Eager code reads a context variable, so threads and asynchronous tasks do not see each other's values. Dynamo
    traces neither context variables nor thread locals (it does not guard the latter, and would silently reuse a graph
    made for another value), but it guards plain attributes: traced code reads ``traced``, the value of the block that
    was entered last and not yet left, by whichever thread.
    """

    def __init__(self, name: str, default: T) -> None:
        self._default = default
        # The blocks around this code: (value, the blocks around that one), or None.
        self._blocks: contextvars.ContextVar[Any] = contextvars.ContextVar(name, default=None)
        self._of_all_threads: list[Any] = []
        self._lock = threading.Lock()
        self.traced: T = default

    def get(self) -> T:
        if torch.compiler.is_compiling():
            return self.traced
        blocks = self._blocks.get()
        return self._default if blocks is None else blocks[0]

    def set_to(self, value: T) -> ScopedSetting[T]:
        return ScopedSetting(self, value)

    def _enter(self, value: T) -> None:
        block = value, self._blocks.get()
        self._blocks.set(block)
        with self._lock:
            self._of_all_threads.append(block)
            self.traced = value

    def _leave(self) -> None:
        block = self._blocks.get()
        self._blocks.set(block[1])
        with self._lock:  # threads leave their blocks in any order
            self._of_all_threads = [other for other in self._of_all_threads if other is not block]
            self.traced = self._of_all_threads[-1][0] if self._of_all_threads else self._default


class ScopedSetting(Generic[T]):
    """The context manager that ``ScopedValue.set_to`` returns; it is reentrant and may be shared by threads."""

    def __init__(self, scoped: ScopedValue[T], value: T) -> None:
        self._scoped = scoped
        self._value = value
        self._traced_before: list[T] = []

    def __enter__(self) -> None:
        scoped = self._scoped
        if torch.compiler.is_compiling():
            self._traced_before.append(scoped.traced)
            scoped.traced = self._value
        else:
            scoped._enter(self._value)

    def __exit__(self, *exception: object) -> None:
        if torch.compiler.is_compiling():
            self._scoped.traced = self._traced_before.pop()
        else:
            self._scoped._leave()


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: expected one of {', '.join(BACKENDS)}; got {name!r}")
    return name


_backend: ScopedValue[str] = ScopedValue(
    "dimr_kernels_backend", _checked(os.environ.get(BACKEND_VARIABLE, "auto"), BACKEND_VARIABLE)
)


def use_backend(name: str) -> ScopedSetting[str]:
    """Context manager: operators inside the block use this implementation (see the module's docstring).

    Raises ``ValueError`` for an unknown name at once, and :class:`BackendError` from the first operator that the
    chosen implementation cannot compute.

    Example:
        >>> with use_backend("eager"):
        ...     current_backend()
        'eager'
        >>> use_backend("fastest")
        Traceback (most recent call last):
            ...
        ValueError: use_backend: expected one of auto, eager, triton, cuda, cpp; got 'fastest'
    """
    return _backend.set_to(_checked(name, "use_backend"))


def current_backend() -> str:
    """Return the name in force: ``use_backend``'s, else that of ``DIMR_KERNELS_BACKEND``, else ``auto``."""
    return _backend.get()


class Smallest(NamedTuple):
    """Elements of the main input from which "auto" takes the C++ form on a CPU."""

    eager: int
    compiled: int
    """Under torch.compile, where an opaque operator costs some 30 us and keeps Inductor from fusing it."""


# As measured (docs/performance.md). The C++ forms were faster than plain PyTorch at every size but for GeGLU's, which
# competes with two cheap calls. Inductor's smaller norms were even or faster, and fuse with what is around them; its
# GeGLU, group norm and depthwise convolution were slower, the last two by far. geglu_linear's input is several times
# smaller than what it gates. Operators that are not listed always take it.
SMALLEST_FOR_CPP = {
    "depthwise_conv2d": Smallest(0, 0),
    "geglu": Smallest(2**14, 2**18),
    "geglu_linear": Smallest(2**12, 2**16),
    "pixel_shuffle_td_norm_add": Smallest(0, 2**21),
    "td_group_norm": Smallest(0, 2**15),
    "td_layer_norm": Smallest(0, 2**21),
    "td_rms_norm": Smallest(0, 2**21),
}


def choose(operator: str, x: torch.Tensor) -> str:
    """Return the fused form that computes a call with main input ``x``, or "eager"."""
    requested = _backend.get()
    if requested == "eager":
        return "eager"
    device = x.device
    if requested == "auto" and device.type == "cpu" and not _is_worth_cpp(operator, x):
        return "eager"
    forms = fused_forms(operator, device)
    if requested == "auto":
        for form in forms:
            if (device.type, form) not in _ONLY_ON_REQUEST and unavailable_reason(form, device, x.dtype) is None:
                return form
        return "eager"
    if requested not in forms:
        available = ", ".join(map(repr, forms))
        raise BackendError(f"{operator}: backend {requested!r} was asked for; it has {available} and 'eager'")
    problem = unavailable_reason(requested, device, x.dtype)
    if problem is not None:
        raise BackendError(f"{operator}: backend {requested!r} was asked for and cannot run: {problem}")
    return requested


def fused_forms(operator: str, device: torch.device) -> tuple[str, ...]:
    """Return the fused forms of an operator for tensors of this device, best first."""
    return FUSED_FORMS[operator].cpu if device.type == "cpu" else FUSED_FORMS[operator].gpu


def _is_worth_cpp(operator: str, x: torch.Tensor) -> bool:
    """Return True if "auto" takes the C++ form, should it run; an exported program needs no operators of ours."""
    smallest = SMALLEST_FOR_CPP.get(operator)
    if smallest is None:
        return True
    if torch.compiler.is_compiling():
        return not is_exporting() and x.numel() >= smallest.compiled
    return x.numel() >= smallest.eager


def unavailable_reason(form: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str | None:
    """Explain why a fused form cannot run on tensors of this device and dtype; None if it can."""
    if dtype not in FUSED_DTYPES:
        return f"it computes in float32 and takes float32, float16 or bfloat16, not {dtype}"
    if form == "triton":
        return _triton_unavailable_reason(device)
    if form == "cpp" and device.type != "cpu":
        return f"it needs CPU tensors, these are on {device.type!r}"
    return _extension_unavailable_reason(device)


def _triton_unavailable_reason(device: torch.device) -> str | None:
    if not TRITON_INSTALLED:
        return "Triton is not installed (pip install triton)"
    if device.type == "cpu":
        if TRITON_INTERPRETS:
            return None
        return "Triton needs CUDA tensors, these are on the CPU (TRITON_INTERPRET=1 runs its slow interpreter)"
    return _gpu_unavailable_reason(device)


def _extension_unavailable_reason(device: torch.device) -> str | None:
    status = extension_status()
    if not status.loaded:
        return f"the compiled extension is not available: {status.reason}"
    if device.type == "cpu":
        return None
    if not status.has_cuda:
        return f"the extension was built without CUDA: {status.reason}"
    return _gpu_unavailable_reason(device)


def _gpu_unavailable_reason(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"it needs a CUDA device, the tensors are on {device.type!r}"
    if torch.version.hip is None and capability(device) < OLDEST_CAPABILITY:
        return f"it needs compute capability 8.0 or newer, {device} has {'.'.join(map(str, capability(device)))}"
    return None


@lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@constant_when_traced
def capability(device: torch.device) -> tuple[int, int]:
    """Return a CUDA device's compute capability, cached, since the query is slow; a constant in traced code."""
    return _capability(device)


# The compiled extension, dimr_kernels._C.

MISSING_NOTE = Path(__file__).with_name("_extension_missing.txt")
"""Written by the build if it leaves the extension out: one line with the reason."""


@dataclass(frozen=True)
class ExtensionStatus:
    loaded: bool
    has_cuda: bool
    reason: str
    """Reason that it did not load, or has no CUDA; empty if nothing is missing."""
    build: dict[str, str] = field(default_factory=dict, compare=False)
    """Compiler, nvcc, architectures and version of torch's headers; empty if it did not load."""


def _load_failure_reason(error: ImportError) -> str:
    if importlib.util.find_spec("dimr_kernels._C") is not None:
        return f"it was built, but does not load here ({error})"
    if MISSING_NOTE.exists():
        return MISSING_NOTE.read_text().strip()
    return "it was not built (pip install builds it)"


@lru_cache(maxsize=1)
def _load_extension() -> ExtensionStatus:
    try:
        from . import _C  # type: ignore[attr-defined]
    except ImportError as error:
        return ExtensionStatus(loaded=False, has_cuda=False, reason=_load_failure_reason(error))
    build = dict(_C.build_information)
    return ExtensionStatus(loaded=True, has_cuda=_C.has_cuda, reason=build.pop("cuda_missing"), build=build)


@constant_when_traced
def extension_status() -> ExtensionStatus:
    """Load the extension, which registers its operators, the first time; return the result."""
    return _load_extension()
