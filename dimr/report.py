"""What a result was made with."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import torch

import dimr_kernels as dk

PACKAGES = ("dimr_kernels", "torch", "triton", "numpy", "scikit-learn", "safetensors", "diffusers")


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Versions and the device, as plain values."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor(),
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe_kernels(device: torch.device) -> dict[str, Any]:
    """Which implementation of the operators runs on this device."""
    requested = dk.current_backend()
    return {"backend": requested, "summary": f"backend {requested!r} on {device.type}"}
