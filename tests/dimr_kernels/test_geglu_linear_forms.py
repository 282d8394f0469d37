"""Which form of the linear layer with GeGLU runs, and what is said where it cannot."""

from __future__ import annotations

import pytest
import torch
from dimr_kernels.ops.geglu_linear import op

import dimr_kernels as dk
from dimr_kernels.functional import geglu_linear
from tests.support.geglu_linear import layer, one_kernel, two_kernels


def kernels_run(monkeypatch, form, inputs):
    """The one-kernel operator's calls and what a call of ``geglu_linear`` gives."""
    calls = []
    real = op.geglu_linear
    monkeypatch.setattr(op, "geglu_linear", lambda *a: calls.append(1) or real(*a))
    with dk.use_backend("triton"):
        geglu_linear(**inputs, form=form)
    return len(calls)


def test_auto_takes_two_kernels_where_nothing_was_measured(device, monkeypatch):
    inputs = {name: x.detach() for name, x in layer(5, 24, 20, torch.float16, device).items()}
    assert op.ONE_KERNEL_WINS == {}
    assert kernels_run(monkeypatch, "auto", inputs) == 0
    assert kernels_run(monkeypatch, "two_kernels", inputs) == 0
    assert kernels_run(monkeypatch, "one_kernel", inputs) == 1


def test_auto_takes_one_kernel_where_it_won_and_no_gradient_is_wanted(device, monkeypatch):
    monkeypatch.setattr(op, "wins", lambda x, weight: weight.shape == (40, 24))
    inputs = layer(5, 24, 20, torch.float16, device)
    assert kernels_run(monkeypatch, "auto", inputs) == 0
    with torch.no_grad():
        assert kernels_run(monkeypatch, "auto", inputs) == 1
        assert kernels_run(monkeypatch, "auto", layer(5, 24, 12, torch.float16, device)) == 0


def test_the_table_is_read_by_architecture_and_widths(monkeypatch):
    monkeypatch.setattr(op, "capability", lambda device: (9, 0))
    monkeypatch.setattr(op, "ONE_KERNEL_WINS", {(90, 24, 20): "1.2 times two kernels at M = 5"})

    class OnGpu:
        device, dtype = torch.device("cuda"), torch.bfloat16

    assert op.wins(OnGpu, torch.empty(40, 24))
    assert not op.wins(OnGpu, torch.empty(24, 40))
    OnGpu.dtype = torch.float32
    assert not op.wins(OnGpu, torch.empty(40, 24))
    assert not op.wins(torch.empty(5, 24).half(), torch.empty(40, 24))


def test_one_kernel_that_cannot_run_says_why(device):
    half = {name: x.detach() for name, x in layer(2, 8, 6, torch.float16, device).items()}
    wide = {name: x.float() for name, x in half.items()}
    with pytest.raises(dk.BackendError, match=r"'one_kernel'.*float16 or bfloat16, not torch.float32.*'two_kernels'"):
        one_kernel(**wide)
    with dk.use_backend("cuda"), pytest.raises(dk.BackendError, match=r"'one_kernel'.*'cuda'"):
        one_kernel(**half)
    meta = {name: x.to("meta") for name, x in half.items()}
    with pytest.raises(dk.BackendError, match=r"'one_kernel'.*needs a CUDA device.*'meta'"):
        one_kernel(**meta)


def test_eager_backend_is_the_definition_whatever_the_form(device):
    inputs = layer(2, 8, 6, torch.float32, device)
    with dk.use_backend("eager"):
        assert torch.equal(one_kernel(**inputs), two_kernels(**inputs))
