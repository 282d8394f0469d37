"""Actions of every opcode, by family. Importing this package registers all of them."""

from . import arithmetic, barriers, conversion, copies, integers, matrices, memory, warps, wgmma
from .registry import build

__all__ = [
    "arithmetic",
    "barriers",
    "build",
    "conversion",
    "copies",
    "integers",
    "matrices",
    "memory",
    "warps",
    "wgmma",
]
