"""Launch configurations: how a table is read, that forcing one changes the launch, that every candidate is right."""

from __future__ import annotations

import importlib
import re

import pytest
import torch

from dimr_kernels.functional import depthwise_conv2d, geglu, geglu_linear, pixel_shuffle_td_norm_add, td_layer_norm
from tests.support.operators import EXAMPLES
from tests.support.parity import assert_parity

pytest.importorskip("triton")
from dimr_kernels.launch import Launch
from dimr_kernels.ops.configurations import Row, Table, assume_architecture, family, forced
from dimr_kernels.static_analysis import OPERATORS


def tables(operator: str) -> tuple[Table, ...]:
    return importlib.import_module(f"dimr_kernels.ops.{operator}.triton").TABLES


def test_rows_are_read_by_size_and_family():
    rows = (Row("small", up_to=8), Row("old", up_to=64, family=80), Row("new", family=90), Row("large"))
    table = Table("kernel", rows, lambda size, family: ("large", "small", f"{size}, {family}"))
    for architecture, expected in ((80, ["small", "old", "large"]), (90, ["small", "new", "new"])):
        with assume_architecture(architecture):
            assert [table.choose(size) for size in (8, 64, 65)] == expected
    with assume_architecture(89):
        assert table.candidates(9) == ["old", "large", "small", "9, 80"]
        with forced("kernel", "forced"), forced("another", "no"):
            assert table.choose(9) == "forced"
            assert table.candidates(9)[0] == "old"
            with pytest.raises(RuntimeError, match="kernel: a configuration is forced already"), forced("kernel", "x"):
                pass
        assert table.choose(9) == "old"


def test_a_table_serves_every_size_on_every_family():
    with pytest.raises(ValueError, match="kernel: no row serves every size on 80"):
        Table("kernel", (Row("small", up_to=8), Row("new", family=90)), lambda size, family: ())


@pytest.mark.parametrize(("architecture", "expected"), [(80, 80), (86, 80), (89, 80), (90, 90), (100, 90), (120, 80)])
def test_families(architecture, expected):
    assert family(architecture) == expected


@pytest.mark.parametrize("operator", OPERATORS)
def test_no_row_claims_a_measurement_that_is_not_there(operator):
    for table in tables(operator):
        for row in table.rows:
            assert row.measured is None or row.measured.strip()


def test_kernels_have_names_of_their_own():
    names = [table.kernel for operator in OPERATORS for table in tables(operator)]
    assert len(names) == len(set(names))


def _example(name: str, function, **changed):
    def run(device: torch.device) -> None:
        inputs = EXAMPLES[name].make_inputs(device, torch.float32) | changed
        assert_parity(function, inputs, ulps=16)

    return run


def _convolution(K: int):
    def run(device: torch.device) -> None:
        x, weight = torch.randn(1, 2, 8, 3, device=device), torch.randn(3, 1, K, K, device=device)
        assert_parity(depthwise_conv2d, {"x": x.requires_grad_(), "weight": weight.requires_grad_()})

    return run


def _wide_norm(device: torch.device) -> None:
    narrow = EXAMPLES["td_layer_norm"].make_inputs(device, torch.float16)
    shapes = {name: (9000,) for name in narrow} | {"x": (1, 1, 9000), "residual": (1, 1, 9000), "t": (1,)}
    wide = {name: torch.randn(shapes[name]).to(x).requires_grad_() for name, x in narrow.items()}
    assert_parity(td_layer_norm, wide, ulps=16)


def _linear(device: torch.device) -> None:
    x, weight = torch.randn(9, 32, device=device).half(), torch.randn(40, 32, device=device).half()
    assert_parity(lambda x, weight: geglu_linear(x, weight, form="one_kernel"), {"x": x, "weight": weight})


NORM = _example("td_layer_norm", td_layer_norm)
GROUP_NORM = _example("td_group_norm", EXAMPLES["td_group_norm"].function)
SHUFFLE = _example("pixel_shuffle_td_norm_add", lambda **inputs: pixel_shuffle_td_norm_add(upscale_factor=2, **inputs))
# Kernel -> a call that runs it, small for the interpreter, and the size its table is read by.
CALLS = {
    "geglu_fwd": (_example("geglu", geglu), 16),
    "geglu_bwd": (_example("geglu", geglu), 16),
    "geglu_linear": (_linear, 20),
    "td_norm_fwd": (NORM, 48),
    "td_norm_bwd": (NORM, 48),
    "time_gate_reduce": (NORM, 48),
    "td_norm_fwd_wide": (_wide_norm, 9000),
    "td_norm_bwd_wide": (_wide_norm, 9000),
    "td_norm_bwd_wide_sums": (_wide_norm, 9000),
    **{f"td_group_norm_{kind}": (GROUP_NORM, 16) for kind in ("moments_fwd", "fwd", "sums_bwd", "bwd")},
    "shuffle_norm_add_fwd": (SHUFFLE, 8),
    "shuffle_norm_add_bwd": (SHUFFLE, 8),
    **{f"depthwise_conv_{kind}[K={K}]": (_convolution(K), 8) for kind in ("fwd", "weight") for K in (3, 5, 7)},
}
TABLES = {table.kernel: table for operator in OPERATORS for table in tables(operator)}


@pytest.mark.parametrize("kernel", ["geglu_fwd", "td_norm_bwd", "depthwise_conv_weight[K=3]", "shuffle_norm_add_fwd"])
def test_forcing_a_candidate_changes_the_launch(kernel, device, monkeypatch):
    launched = []
    run = Launch.__call__

    def recorded(self, *pointers):
        launched.append((self._kernel, self._grid, str(self._options)))
        return run(self, *pointers)

    monkeypatch.setattr(Launch, "__call__", recorded)
    call, size = CALLS[kernel]
    call(device)
    usual, launched[:] = set(launched), []
    with forced(kernel, TABLES[kernel].candidates(size)[-1]):
        call(device)
    assert set(launched) - usual, "the same launches"
    launched.clear()
    call(device)
    assert set(launched) == usual


@pytest.mark.slow
@pytest.mark.parametrize("kernel", CALLS)
def test_every_candidate_is_right(kernel, device):
    call, size = CALLS[kernel]
    candidates = TABLES[kernel].candidates(size)
    assert len(candidates) > 1
    # In the interpreter the number of warps changes nothing: one of those that differ in nothing else will do.
    seen = set()
    for config in candidates:
        kind = re.sub(r"num_warps=\d+", "", str(config))
        if device.type == "cuda" or kind not in seen:
            seen.add(kind)
            with forced(kernel, config):
                call(device)


def test_every_table_has_a_call():
    assert set(CALLS) == set(TABLES)
