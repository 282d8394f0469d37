"""Attention's backends: flash-attn and torch's kernels, which of them can compute a call, and in which order to try.

The rules read plain facts about the call, so each of them can be tested without the hardware in question. They repeat
the limits of torch's own dispatch (``aten/native/transformers``) over the versions supported here; if torch refuses a
call that they let through, the next backend is tried, or an explicit choice raises.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..dispatch import BackendError, capability, constant_when_traced

HALF_DTYPES = (torch.float16, torch.bfloat16)
# cuDNN's backward gives NaN for lengths that are not multiples of 128 up to this version.
CUDNN_WITH_BROKEN_TAILS = 91500
SDPA_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


@lru_cache(maxsize=1)
def _flash_attn_import_error() -> str | None:
    if importlib.util.find_spec("flash_attn") is None:
        return "flash-attn is not installed"
    try:
        from flash_attn import flash_attn_func  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:  # usually built for another torch: undefined symbols
        return f"flash-attn is installed but does not load ({error})"
    return None


@constant_when_traced
def flash_attn_missing_reason() -> str | None:
    """Import flash-attn the first time; explain why it cannot be used, or return None if it can."""
    return _flash_attn_import_error()


@dataclass(frozen=True)
class Call:
    """Facts about one call, as the rules need them."""

    device: str
    dtype: torch.dtype
    head_dim: int
    value_dim: int
    batch: int
    queries: int
    keys: int
    empty: bool = False
    needs_grad: bool = False
    deterministic: bool = False
    capability: tuple[int, int] = (0, 0)
    cudnn: int = 0
    """cuDNN's version number, 0 without cuDNN."""


@constant_when_traced
def _cudnn_version() -> int:
    return torch.backends.cudnn.version() or 0


@constant_when_traced  # dynamo cannot trace the question
def _warns_only() -> bool:
    return torch.is_deterministic_algorithms_warn_only_enabled()


def describe(q: Tensor, k: Tensor, v: Tensor) -> Call:
    """Collect the facts about ``q [B, heads, L, E]``, ``k [B, heads, S, E]``, ``v [B, heads, S, Ev]``."""
    cuda = q.device.type == "cuda"
    return Call(
        device=q.device.type,
        dtype=q.dtype,
        head_dim=q.shape[3],
        value_dim=v.shape[3],
        batch=q.shape[0],
        queries=q.shape[2],
        keys=k.shape[2],
        empty=q.numel() == 0 or k.numel() == 0 or v.numel() == 0,
        needs_grad=torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad),
        deterministic=torch.are_deterministic_algorithms_enabled() and not _warns_only(),
        capability=capability(q.device) if cuda else (0, 0),
        cudnn=_cudnn_version() if cuda and torch.version.hip is None else 0,
    )


def _gpu_problem(call: Call, dtypes: tuple[torch.dtype, ...]) -> str | None:
    """Check what every fused GPU kernel asks for."""
    if call.device != "cuda":
        return f"it needs CUDA tensors, these are on {call.device!r}"
    if torch.version.hip is None and call.capability < (8, 0):
        return f"it needs compute capability 8.0 or newer, this GPU has {call.capability[0]}.{call.capability[1]}"
    if call.dtype not in dtypes:
        return f"it takes {', '.join(str(d).removeprefix('torch.') for d in dtypes)}, not {call.dtype}"
    if call.empty:
        return "it takes no empty tensors"
    return None


def _head_dim_problem(call: Call, multiple: int, largest: int, equal: bool = True) -> str | None:
    if equal and call.head_dim != call.value_dim:
        return f"it needs one head dim, queries have {call.head_dim} and values {call.value_dim}"
    for head_dim in (call.head_dim, call.value_dim):
        if head_dim % multiple or head_dim > largest:
            return f"it needs a head dim that is a multiple of {multiple} and at most {largest}, not {head_dim}"
    return None


def _flash_attn_problem(call: Call) -> str | None:
    return _gpu_problem(call, HALF_DTYPES) or _head_dim_problem(call, 8, 256) or flash_attn_missing_reason()


def _flash_problem(call: Call) -> str | None:
    if call.device == "cpu":
        return "it takes no empty tensors" if call.empty else _head_dim_problem(call, 1, call.head_dim)
    # A head dim that is no multiple of 8 runs, but torch pads q, k and v with copies: see attention.pad_head_dim.
    problem = _gpu_problem(call, HALF_DTYPES) or _head_dim_problem(call, 1, 256)
    small_shared_memory = call.capability in ((8, 6), (8, 7), (8, 9)) or call.capability[0] == 12
    if problem is None and small_shared_memory and call.needs_grad and 192 < call.head_dim <= 224:
        return f"its backward has no head dim {call.head_dim} on this GPU"
    return problem


def _cudnn_problem(call: Call) -> str | None:
    problem = _gpu_problem(call, HALF_DTYPES) or _head_dim_problem(call, 8, 128, equal=False)
    if problem is not None:
        return problem
    if call.cudnn < 90000:
        return f"it needs cuDNN 9.0, found {call.cudnn or 'none'}"
    if call.cudnn <= CUDNN_WITH_BROKEN_TAILS and (call.queries % 128 or call.keys % 128):
        return (
            f"cuDNN {call.cudnn} (before 9.15.1) gives wrong gradients for lengths that are not multiples of 128, "
            f"here {call.queries} and {call.keys}"
        )
    if call.keys == 1:
        return "it does not take a single key"
    if call.batch > 65535:
        return f"it takes a batch of at most 65535, not {call.batch}"
    if call.deterministic:
        return "it is not deterministic, and torch.use_deterministic_algorithms is on"
    return None


def _efficient_problem(call: Call) -> str | None:
    alignment = 4 if call.dtype == torch.float32 else 8
    return _gpu_problem(call, (torch.float32, *HALF_DTYPES)) or _head_dim_problem(call, alignment, 65536, equal=False)


# Backend -> function that explains why it cannot compute a call, or returns None.
RULES: dict[str, Callable[[Call], str | None]] = {
    "flash_attn": _flash_attn_problem,
    "flash": _flash_problem,
    "cudnn": _cudnn_problem,
    "efficient": _efficient_problem,
    "math": lambda call: None,
}

# Backends on a CUDA device, best first, and the major compute capabilities that they are considered for, () for all.
# The order follows what the kernels' makers publish.
CUDA_ORDER: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("flash_attn", ()),  # whoever installed the package wants it; its releases are ahead of torch's copy
    ("cudnn", (9, 10)),  # written for the tensor cores and copy engine of Hopper and Blackwell
    ("flash", ()),  # torch's FlashAttention-2: the fastest kernel of every other GPU from Ampere on
    ("efficient", ()),  # takes float32 and unequal head dims, and still keeps no L x L matrix
    ("math", ()),  # takes anything: float64, odd head dims, empty tensors, older GPUs
)


def automatic(call: Call) -> list[str]:
    """List the backends that can compute a call on a CUDA device, best first."""
    return [
        backend
        for backend, majors in CUDA_ORDER
        if (not majors or call.capability[0] in majors) and RULES[backend](call) is None
    ]


def attention(q: Tensor, k: Tensor, v: Tensor, backend: str, scale: float | None) -> Tensor:
    """Compute attention by a backend of ``RULES``, or for "auto" by the best one that can compute the call.

    ``q [B, heads, L, E]``, ``k [B, heads, S, E]``, ``v [B, heads, S, Ev]`` -> ``[B, heads, L, Ev]``.
    """
    # Every fused kernel wants unit last strides; views of a packed qkv have them.
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    if backend != "auto":
        return _chosen(q, k, v, backend, scale)
    if q.device.type != "cuda":
        # One fused kernel at most: torch's own choice is the right one, and costs less on the host.
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    backends = automatic(describe(q, k, v))
    if backends[0] == "flash_attn":
        return _flash_attn(q, k, v, scale)
    return _sdpa(q, k, v, scale, backends)


def _chosen(q: Tensor, k: Tensor, v: Tensor, backend: str, scale: float | None) -> Tensor:
    problem = RULES[backend](describe(q, k, v))
    if problem is not None:
        raise BackendError(f"attention: backend {backend!r} was asked for and cannot run: {problem}")
    if backend == "flash_attn":
        return _flash_attn(q, k, v, scale)
    if torch.compiler.is_compiling():
        return _sdpa(q, k, v, scale, [backend])
    try:
        return _sdpa(q, k, v, scale, [backend])
    except RuntimeError as error:
        if "No available kernel" not in str(error) and "No viable backend" not in str(error):
            raise
        raise BackendError(f"attention: backend {backend!r} was asked for and torch refuses it: {error}") from error


def _flash_attn(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
    """Call flash-attn without copies; the result is a view of its ``[B, L, heads, E]``."""
    from flash_attn import flash_attn_func

    out = flash_attn_func(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        softmax_scale=scale,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return out.transpose(1, 2)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float | None, backends: list[str]) -> Tensor:
    """Call torch's scaled_dot_product_attention restricted to these backends, tried in this order."""
    with sdpa_kernel([SDPA_BACKENDS[name] for name in backends], set_priority=True):
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
