"""Limits of the GPUs that kernels are compiled for (CUDA programming guide, "Compute Capabilities")."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """Limits of one compute capability; sizes in bytes."""

    shared_per_block: int
    """Most that a kernel may ask for."""
    shared_per_multiprocessor: int
    warps: int
    """Resident on a multiprocessor at once."""
    blocks: int
    """Resident on a multiprocessor at once."""


ARCHITECTURES = {
    80: Architecture(163 << 10, 164 << 10, warps=64, blocks=32),  # A100
    86: Architecture(99 << 10, 100 << 10, warps=48, blocks=16),  # RTX 30, A10, A40
    89: Architecture(99 << 10, 100 << 10, warps=48, blocks=24),  # RTX 40, L4, L40S
    90: Architecture(227 << 10, 228 << 10, warps=64, blocks=32),  # H100, H200
    100: Architecture(227 << 10, 228 << 10, warps=64, blocks=32),  # B200
    120: Architecture(99 << 10, 100 << 10, warps=48, blocks=24),  # RTX 50
}
"""Compute capability times ten -> its limits."""
