"""Files of the package that one warm call enters: a reader follows the call through these and no others."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import dimr_kernels as dk

PACKAGE = Path(dk.__file__).parent
MOST_FILES = 8


def files_entered(function: Callable[[], Any]) -> set[str]:
    found: set[str] = set()

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            found.add(frame.f_code.co_filename)

    for _ in range(2):
        function()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    paths = (Path(name) for name in found)
    return {path.relative_to(PACKAGE).as_posix() for path in paths if path.is_relative_to(PACKAGE)}


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_td_layer_norm(backend, recorded):
    from benchmarks.stubs import stubbed_launches

    norm = dk.TDLayerNorm(16)
    x, t = torch.randn(2, 3, 16), torch.rand(2)

    def call() -> None:
        y = norm(x, t)
        if recorded:
            y.sum().backward()

    if backend == "auto":  # the definition, on a CPU
        with torch.set_grad_enabled(recorded):
            entered = files_entered(call)
        assert "ops/td_norm_triton.py" not in entered
    else:
        pytest.importorskip("triton")
        with stubbed_launches(), torch.set_grad_enabled(recorded):
            entered = files_entered(call)
        assert "ops/td_norm_triton.py" in entered
    assert "ops/td_norm.py" in entered
    assert len(entered) <= MOST_FILES, sorted(entered)
