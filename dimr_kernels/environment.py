"""Report of what is installed, what was built and what each operator runs as: ``python -m dimr_kernels``."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections import defaultdict
from collections.abc import Iterator

import torch

from .dispatch import (
    BACKEND_VARIABLE,
    BACKENDS,
    FUSED_FORMS,
    SMALLEST_FOR_CPP,
    TRITON_INSTALLED,
    BackendError,
    choose,
    current_backend,
    extension_status,
    fused_forms,
    unavailable_reason,
)
from .ops import attention_backends
from .ops.attention import MOST_SCORES_ON_CPU

# Public operators; those of ``inference`` run as these do.
OPERATORS = (*(name for name in FUSED_FORMS if "." not in name), "attention")
LARGE = 2**20
"""Elements for which the report asks."""
COST_WITHOUT_EXTENSION = (
    "on a CPU every operator runs as plain PyTorch, on a GPU pixel_shuffle_add and pixel_unshuffle do; nothing is lost"
)
COST_WITHOUT_CUDA = "on a GPU, pixel_shuffle_add and pixel_unshuffle run as plain PyTorch; everything else works"
COST_WITHOUT_TRITON = "the operators whose fused form is Triton's run as plain PyTorch, on a GPU too"


def _version(package: str, missing: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return missing


def _gpus() -> list[torch.device]:
    return [torch.device("cuda", i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []


def _torch_line() -> str:
    toolkit = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    return f"{torch.__version__} ({toolkit if torch.version.cuda or torch.version.hip else 'built without CUDA'})"


def _triton_line() -> str:
    return _version("triton", "installed") if TRITON_INSTALLED else f"not installed. Cost: {COST_WITHOUT_TRITON}"


def _flash_attn_line() -> str:
    problem = attention_backends.flash_attn_missing_reason()
    return _version("flash-attn", "installed") if problem is None else f"{problem}; torch's kernels serve. Optional"


def _gpu_lines() -> Iterator[str]:
    for device in _gpus():
        properties = torch.cuda.get_device_properties(device)
        memory = properties.total_memory / 2**30
        yield f"{device.index}: {properties.name}, {properties.major}.{properties.minor}, {memory:.0f} GiB"
    if not _gpus():
        yield "none that torch can use"


def _extension_lines() -> Iterator[str]:
    status = extension_status()
    if not status.loaded:
        yield f"not available: {status.reason}"
        yield f"Cost: {COST_WITHOUT_EXTENSION}"
        return
    build = status.build
    made_with = f"{build['compiler']}, headers of torch {build['torch_headers']}"
    if status.has_cuda:
        yield f"CPU and CUDA operators ({made_with}, nvcc {build['nvcc']}, {build['architectures']})"
        return
    yield f"CPU operators only ({made_with}): {status.reason}"
    yield f"Cost: {COST_WITHOUT_CUDA}"


def _versions() -> Iterator[tuple[str, str]]:
    yield "dimr_kernels", _version("dimr_kernels", "not installed, run from its source folder")
    yield "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield "torch", _torch_line()
    yield "Triton", _triton_line()
    yield "flash-attn", _flash_attn_line()
    for line in _gpu_lines():
        yield "GPU", line
    for line in _extension_lines():
        yield "extension", line
    source = f"from {BACKEND_VARIABLE}" if os.environ.get(BACKEND_VARIABLE) else f"{BACKEND_VARIABLE} is not set"
    yield "backend", f"{current_backend()} ({source}; one of {', '.join(BACKENDS)})"


def implementation_of(operator: str, device: torch.device) -> tuple[str, str]:
    """Return what the operator runs as for large float32 tensors on ``device``, and why not fused (or "")."""
    if operator == "attention":
        return _attention_on(device), ""
    try:
        chosen = choose(operator, torch.empty(1, device=device).expand(LARGE))
    except BackendError as error:
        return "error", str(error).removeprefix(f"{operator}: ")
    if chosen != "eager":
        return chosen, ""
    if current_backend() == "eager":
        return chosen, "it was asked for"
    return chosen, unavailable_reason(fused_forms(operator, device)[0], device) or ""


def _attention_on(device: torch.device) -> str:
    """Return attention's backend for bfloat16 and a head dim of 64."""
    if current_backend() == "eager":
        return "eager"
    if device.type != "cuda":
        return "torch SDPA"
    call = attention_backends.Call(
        device="cuda", dtype=torch.bfloat16, head_dim=64, value_dim=64, batch=1, queries=257, keys=257,
        capability=torch.cuda.get_device_capability(device), cudnn=torch.backends.cudnn.version() or 0,
    )  # fmt: skip
    return attention_backends.automatic(call)[0]


def _on_a_gpu_elsewhere(operator: str) -> str:
    """Return what this installation would run on a GPU of compute capability 8.0 or newer."""
    if current_backend() == "eager":
        return "eager"
    if operator == "attention":
        return "by GPU"
    ready = {"triton": TRITON_INSTALLED, "cuda": extension_status().has_cuda}
    return next((form for form in FUSED_FORMS[operator].gpu if ready[form]), "eager")


def _implementations() -> Iterator[str]:
    devices = [torch.device("cpu"), *_gpus()]
    rows = [["operator", *map(str, devices)]]
    reasons: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for operator in OPERATORS:
        rows.append([operator])
        for device in devices:
            chosen, why = implementation_of(operator, device)
            rows[-1].append(chosen)
            if why:
                reasons[str(device), chosen, why].append(operator)
    if len(devices) == 1:
        rows[0].append("GPU (none here)")
        for row in rows[1:]:
            row.append(_on_a_gpu_elsewhere(row[0]))
    for row in rows:
        yield "".join([row[0].ljust(28), *(cell.ljust(16) for cell in row[1:])]).rstrip()
    yield ""
    if current_backend() == "auto":
        small = [f"{name} below {limits.eager:,} elements" for name, limits in SMALLEST_FOR_CPP.items() if limits.eager]
        shown = small if extension_status().loaded else []
        shown.append(f"attention up to {MOST_SCORES_ON_CPU:,} scores (in float32)")
        yield f"eager on cpu, where that is faster: {', '.join(shown)}"
    for (where, chosen, why), operators in reasons.items():
        yield f"{chosen} on {where} for {', '.join(operators)}: {why}"


def report() -> str:
    """Return the report as several lines of plain text."""
    lines = [f"{name:<13}{value}" for name, value in _versions()]
    return "\n".join([*lines, "", *_implementations()]).rstrip()
