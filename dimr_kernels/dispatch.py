"""Which implementation of an operator runs: ``auto``, ``eager``, ``triton`` or ``cuda``.

``auto`` takes an operator's fused form where it runs and the eager definition elsewhere. Any other choice is binding:
if it cannot run, :class:`BackendError` says why. ``cuda`` names the compiled extension, which has a C++ form for CPU
tensors and a CUDA form for GPU tensors.
"""

from __future__ import annotations

import importlib.util
import os
from functools import lru_cache

import torch

from .scoped import ScopedSetting, ScopedValue
from .traced import constant_when_traced

BACKENDS = ("auto", "eager", "triton", "cuda")
BACKEND_VARIABLE = "DIMR_KERNELS_BACKEND"
FUSED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OLDEST_CAPABILITY = (8, 0)


class BackendError(RuntimeError):
    """An implementation was asked for that does not exist or cannot run here."""


def _checked(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: expected one of {', '.join(BACKENDS)}; got {name!r}")
    return name


_backend: ScopedValue[str] = ScopedValue(
    "dimr_kernels_backend", _checked(os.environ.get(BACKEND_VARIABLE, "auto"), BACKEND_VARIABLE)
)

TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
# Triton reads this variable when a kernel is decorated, so it is fixed for the life of the process.
TRITON_INTERPRETS = os.environ.get("TRITON_INTERPRET", "0") == "1"


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
        ValueError: use_backend: expected one of auto, eager, triton, cuda; got 'fastest'
    """
    return _backend.set_to(_checked(name, "use_backend"))


def current_backend() -> str:
    """The name in force: ``use_backend``'s, else the environment's ``DIMR_KERNELS_BACKEND``, else ``auto``."""
    return _backend.get()


def choose(operator: str, x: torch.Tensor, fused: str) -> str:
    """``fused`` (the operator's fused form, "triton" or "cuda") or "eager", for a call whose main input is ``x``."""
    requested = _backend.get()
    if requested == "eager":
        return "eager"
    if requested not in ("auto", fused):
        raise BackendError(f"{operator}: backend {requested!r} was asked for; it has {fused!r} and 'eager'")
    problem = why_unavailable(fused, x.device, x.dtype)
    if requested == "auto":
        # The interpreter is for tests: an automatic choice never takes it.
        interpreted = fused == "triton" and x.device.type == "cpu"
        return "eager" if problem is not None or interpreted else fused
    if problem is not None:
        raise BackendError(f"{operator}: backend {fused!r} was asked for and cannot run: {problem}")
    return fused


def why_unavailable(fused: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str | None:
    """Why a fused form cannot run on tensors of this device and dtype, or None if it can."""
    if dtype not in FUSED_DTYPES:
        return f"it computes in float32 and takes float32, float16 or bfloat16, not {dtype}"
    if fused == "triton":
        return _why_no_triton(device)
    return _why_no_extension(device)


def _why_no_triton(device: torch.device) -> str | None:
    if not TRITON_INSTALLED:
        return "Triton is not installed (pip install triton)"
    if device.type == "cpu":
        if TRITON_INTERPRETS:
            return None
        return "Triton needs CUDA tensors, these are on the CPU (TRITON_INTERPRET=1 runs its slow interpreter)"
    return _why_no_gpu(device)


def _why_no_extension(device: torch.device) -> str | None:
    from .extension import extension_status

    status = extension_status()
    if not status.loaded:
        return f"the compiled extension is not available: {status.reason}"
    if device.type == "cpu":
        return None
    if not status.has_cuda:
        return f"the extension was built without CUDA: {status.reason}"
    return _why_no_gpu(device)


@lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@constant_when_traced
def capability(device: torch.device) -> tuple[int, int]:
    """A CUDA device's compute capability, a constant in traced code; asked for once, since asking takes long."""
    return _capability(device)


def _why_no_gpu(device: torch.device) -> str | None:
    if device.type != "cuda":
        return f"it needs a CUDA device, the tensors are on {device.type!r}"
    if torch.version.hip is None and capability(device) < OLDEST_CAPABILITY:
        return f"it needs compute capability 8.0 or newer, {device} has {'.'.join(map(str, capability(device)))}"
    return None
