"""The table of dtypes in docs/operators.md, row by row: this package's norms beside torch's."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import dimr_kernels as dk

D = 64
PAGE = Path(__file__).parents[2] / "docs" / "operators.md"
ROWS = [
    re.findall(r"[^|]+", line.replace(" ", ""))
    for line in PAGE.read_text()
    .split("<!-- norm dtypes: begin -->")[1]
    .split("<!-- norm dtypes: end -->")[0]
    .split("\n")
    if line.startswith("| ") and "float" in line
]
ids = [f"{row[0]}-{row[1]}" for row in ROWS]
OURS = {
    "layer norm": lambda: dk.TDLayerNorm(D),
    "RMS norm": lambda: dk.TDRMSNorm(D),
    "group norm": lambda: dk.TDGroupNorm(4, D),
}


@pytest.fixture
def every_warning() -> Iterator[None]:
    """Let torch repeat what it warns of once per process."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


def result_of(function) -> str:
    """Describe a call as the table does: the dtype of its result, what it warns of, or that it raises."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = str(function().dtype).removeprefix("torch.")
        except RuntimeError as error:
            if "mixed dtype" not in str(error):
                raise
            return "error"
    return result + (",warns" if any("Mismatch dtype" in str(warning.message) for warning in caught) else "")


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("row", ROWS, ids=ids)
@pytest.mark.parametrize("name", OURS)
def test_dtype_of_our_norms(name, row, autocast):
    """Check the column of this package, that no norm warns, and that a result is rounded once."""
    x = torch.randn(3, 5, D).to(getattr(torch, row[0]))
    norm = OURS[name]().to(getattr(torch, row[1]))
    with torch.no_grad():
        norm.p1.uniform_(0.5, 1.5)
    exact = OURS[name]().double()
    exact.load_state_dict({key: value.double() for key, value in norm.state_dict().items()})
    found: list[torch.Tensor] = []
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        assert result_of(lambda: found.append(norm(x, 0.3)) or found[0]) == row[2]
    error = (found[0].double() - exact(x.double(), 0.3)).abs()
    allowed = torch.finfo(x.dtype).eps / 2 * exact(x.double(), 0.3).abs() + 2e-6
    assert (error <= allowed).all()


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("row", ROWS, ids=ids)
def test_dtype_of_torchs_norms(row, autocast, every_warning):
    """Check the columns of torch."""
    x = torch.randn(3, 5, D).to(getattr(torch, row[0]))
    weight, bias = torch.ones(2, D, dtype=getattr(torch, row[1]))
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        assert result_of(lambda: F.layer_norm(x, (D,), weight, bias)) == row[3]
        assert result_of(lambda: F.group_norm(x.transpose(1, 2), 4, weight, bias)) == row[3]
        assert result_of(lambda: F.rms_norm(x, (D,), weight)) == row[4]


@pytest.mark.parametrize("t", [0.3, torch.linspace(-1, 1, 2)], ids=["one timestep", "two"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", ["auto", "eager"])
@pytest.mark.parametrize("name", OURS)
def test_gradients_are_summed_in_float32(name, backend, dtype, t):
    """In bfloat16, 256 + 1 is 256, and in float16 2,048 + 1 is 2,048; torch's layer norm sums so on a CPU."""
    x = (1 + torch.rand(2, 4096, D) / 2).to(dtype)
    norm = OURS[name]().to(dtype)
    exact = OURS[name]().double()
    with dk.use_backend(backend):
        norm(x, t).sum().backward()
        exact(x.double(), t).sum().backward()
    for (key, found), wanted in zip(norm.named_parameters(), exact.parameters(), strict=True):
        error = (found.grad.double() - wanted.grad).abs().max()
        assert error <= 2 * torch.finfo(dtype).eps * wanted.grad.abs().max() + 1e-3, key


def test_no_row_is_missing():
    dtypes = ("float32", "bfloat16", "float16")
    assert {(row[0], row[1]) for row in ROWS} >= {(x, weight) for x in dtypes for weight in dtypes}
