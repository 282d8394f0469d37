"""Files of the package that one warm call enters: a reader follows the call through these and no others."""

from __future__ import annotations

import pytest
import torch

import dimr_kernels as dk
from tests.support.files_entered import files_entered

MOST_FILES = 8


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
            entered = files_entered(call, dk)
        assert "dimr_kernels/ops/td_norm_triton.py" not in entered
    else:
        pytest.importorskip("triton")
        with stubbed_launches(), torch.set_grad_enabled(recorded):
            entered = files_entered(call, dk)
        assert "dimr_kernels/ops/td_norm_triton.py" in entered
    assert "dimr_kernels/ops/td_norm.py" in entered
    assert len(entered) <= MOST_FILES, sorted(entered)
