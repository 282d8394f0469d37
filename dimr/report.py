"""What a result was made with."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import dimr_kernels as dk

from .network import DiMR

PACKAGES = ("dimr_kernels", "torch", "triton", "numpy", "scikit-learn", "safetensors", "diffusers")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions and the device, as plain values."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


class _CalledOperators(TorchDispatchMode):
    """The names of the operators that run inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        self.names.add(operator.name())
        return operator(*arguments, **(keywords or {}))


@torch.no_grad()
def describe_kernels(model: DiMR) -> dict[str, Any]:
    """Which operators one forward really calls: the fused ones of ``dimr_kernels``, and the form of attention."""
    config, device = model.config, model.device
    x = torch.zeros(2, config.in_channels, config.input_size, config.input_size, device=device, dtype=model.dtype)
    with _CalledOperators() as called:
        model(x, 500.0, torch.zeros(2, dtype=torch.int64, device=device))
    fused = sorted(name.partition("::")[2] for name in called.names if name.startswith("dimr_kernels::"))
    return {
        "backend": dk.current_backend(),
        "fused": fused,
        "attention": sorted(name for name in called.names if "scaled_dot_product" in name or "flash" in name),
    }
