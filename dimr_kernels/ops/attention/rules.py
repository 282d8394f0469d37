"""Which attention backend can compute a call, why not, and in which order an automatic choice tries them.

The rules read plain facts about the call, so each of them can be tested without the hardware that it speaks of. They
repeat the limits of torch's own dispatch (``aten/native/transformers``) over the versions supported here; what they
let through and torch refuses all the same falls to the next backend, or raises where the choice was explicit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...dispatch import capability
from ...traced import constant_when_traced
from .flash_attn import why_not_installed

HALF_DTYPES = (torch.float16, torch.bfloat16)
# cuDNN's backward gives NaN for lengths that are not multiples of 128 up to this version.
CUDNN_WITH_BROKEN_TAILS = 91500


@dataclass(frozen=True)
class Call:
    """The facts about one call that the rules need."""

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
    """cuDNN's version number, 0 where there is none."""


@constant_when_traced
def _cudnn_version() -> int:
    return torch.backends.cudnn.version() or 0


@constant_when_traced  # dynamo cannot trace the question
def _warns_only() -> bool:
    return torch.is_deterministic_algorithms_warn_only_enabled()


def describe(q: Tensor, k: Tensor, v: Tensor) -> Call:
    """``q [B, heads, L, E]``, ``k [B, heads, S, E]``, ``v [B, heads, S, Ev]``."""
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


def _why_no_gpu_kernel(call: Call, dtypes: tuple[torch.dtype, ...]) -> str | None:
    """What every fused GPU kernel asks for."""
    if call.device != "cuda":
        return f"it needs CUDA tensors, these are on {call.device!r}"
    if torch.version.hip is None and call.capability < (8, 0):
        return f"it needs compute capability 8.0 or newer, this GPU has {call.capability[0]}.{call.capability[1]}"
    if call.dtype not in dtypes:
        return f"it takes {', '.join(str(d).removeprefix('torch.') for d in dtypes)}, not {call.dtype}"
    if call.empty:
        return "it takes no empty tensors"
    return None


def _why_not_head_dim(call: Call, multiple: int, largest: int, equal: bool = True) -> str | None:
    if equal and call.head_dim != call.value_dim:
        return f"it needs one head dim, queries have {call.head_dim} and values {call.value_dim}"
    for head_dim in (call.head_dim, call.value_dim):
        if head_dim % multiple or head_dim > largest:
            return f"it needs a head dim that is a multiple of {multiple} and at most {largest}, not {head_dim}"
    return None


def _why_not_flash_attn(call: Call) -> str | None:
    return _why_no_gpu_kernel(call, HALF_DTYPES) or _why_not_head_dim(call, 8, 256) or why_not_installed()


def _why_not_flash(call: Call) -> str | None:
    if call.device == "cpu":
        return "it takes no empty tensors" if call.empty else _why_not_head_dim(call, 1, call.head_dim)
    # A head dim that is no multiple of 8 runs, but torch pads q, k and v with copies: see packing.pad_head_dim.
    problem = _why_no_gpu_kernel(call, HALF_DTYPES) or _why_not_head_dim(call, 1, 256)
    small_shared_memory = call.capability in ((8, 6), (8, 7), (8, 9)) or call.capability[0] == 12
    if problem is None and small_shared_memory and call.needs_grad and 192 < call.head_dim <= 224:
        return f"its backward has no head dim {call.head_dim} on this GPU"
    return problem


def _why_not_cudnn(call: Call) -> str | None:
    problem = _why_no_gpu_kernel(call, HALF_DTYPES) or _why_not_head_dim(call, 8, 128, equal=False)
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


def _why_not_efficient(call: Call) -> str | None:
    alignment = 4 if call.dtype == torch.float32 else 8
    return _why_no_gpu_kernel(call, (torch.float32, *HALF_DTYPES)) or _why_not_head_dim(
        call, alignment, 65536, equal=False
    )


RULES: dict[str, Callable[[Call], str | None]] = {
    "flash_attn": _why_not_flash_attn,
    "flash": _why_not_flash,
    "cudnn": _why_not_cudnn,
    "efficient": _why_not_efficient,
    "math": lambda call: None,
    "eager": lambda call: None,
}


@dataclass(frozen=True)
class Candidate:
    backend: str
    reason: str
    majors: tuple[int, ...] = ()
    """Major compute capabilities for which an automatic choice considers it; () is all."""


# None of this was timed by this project: the reasons are what the kernels' makers publish.
CUDA_ORDER = (
    Candidate("flash_attn", "whoever installed the package wants it; its releases are ahead of torch's copy"),
    Candidate("cudnn", "written for the tensor cores and copy engine of Hopper and Blackwell", majors=(9, 10)),
    Candidate("flash", "torch's FlashAttention-2: the fastest kernel of every other GPU from Ampere on"),
    Candidate("efficient", "takes float32 and unequal head dims, and still keeps no L x L matrix"),
    Candidate("math", "takes anything: float64, odd head dims, empty tensors, older GPUs"),
)


def automatic(call: Call) -> list[str]:
    """The backends that can compute a call on a CUDA device, best first."""
    return [
        candidate.backend
        for candidate in CUDA_ORDER
        if (not candidate.majors or call.capability[0] in candidate.majors) and RULES[candidate.backend](call) is None
    ]
