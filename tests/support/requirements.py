"""Marks that skip a test, with the reason, where the machine lacks what it needs."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

import pytest
import torch

COMPILERS = (os.environ.get("CXX"), "c++", "g++", "clang++")

needs_inductor = pytest.mark.skipif(
    not torch.cuda.is_available() and not any(name and shutil.which(name) for name in COMPILERS),
    reason="torch.compile needs a C++ compiler on a CPU",
)

_missing = [name for name in ("PIL", "safetensors", "tqdm") if find_spec(name) is None]
needs_demo_extra = pytest.mark.skipif(
    bool(_missing), reason=f"the [demo] extra is not installed: {', '.join(_missing)}"
)
