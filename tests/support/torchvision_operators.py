"""Workaround to import torchvision with a torch that its compiled operators were not built for.

PyPI has torchvision for CUDA's torch alone. Beside a CPU's torch its library does not load, and its import fails
because the operators of detection are missing. Networks and data sets need none of them: declared, they are enough.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch

DETECTION = ("nms", "qnms")


def declare_missing_operators() -> None:
    """Declare torchvision's operators of detection, if it is installed and its library does not load."""
    package = find_spec("torchvision")
    if package is not None and not any(map(_loads, package.submodule_search_locations or ())):
        for name in DETECTION:
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _loads(folder: str) -> bool:
    try:
        for library in Path(folder).glob("_C*.so"):
            torch.ops.load_library(library)
    except OSError:
        return False
    return True
