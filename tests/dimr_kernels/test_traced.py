"""What is told to torch.compile when the package is imported, and what is not imported for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from dimr_kernels.dispatch import constant_when_traced

ROOT = Path(__file__).parents[2]


def test_the_mark_is_torchs_own():
    ours, torchs = (mark(lambda: 0) for mark in (constant_when_traced, torch.compiler.assume_constant_result))
    assert vars(ours) == vars(torchs) != {}


def test_importing_the_package_imports_no_compiler_and_no_network_library():
    unwanted = ("torch._dynamo", "timm", "diffusers", "torchvision")
    code = f"import sys, dimr_kernels; print([name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
