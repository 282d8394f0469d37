"""Launch configurations: tiling, overrides, and correct results for every candidate."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dimr_kernels import launch
from dimr_kernels.functional import depthwise_conv2d, geglu, geglu_linear, pixel_shuffle_td_norm_add, td_layer_norm
from dimr_kernels.launch import (
    Launch,
    RowConfig,
    Samples,
    assume_architecture,
    family_of,
    gpu_family,
    launch_config,
    override_config,
)
from tests.support.operators import EXAMPLES
from tests.support.parity import assert_parity

pytest.importorskip("triton")
from benchmarks.tune import CANDIDATES, candidates


@pytest.fixture
def chosen(monkeypatch) -> Callable[..., Any]:
    """Register a configuration function for this test alone."""
    monkeypatch.setattr(launch, "launch_configs", {})

    @launch_config("kernel")
    def config(size: int) -> str:
        return "small" if size <= 8 else f"large, {gpu_family()}"

    return config


def test_an_override_replaces_the_choice(chosen):
    for architecture, expected in ((80, ["small", "large, 80"]), (90, ["small", "large, 90"])):
        with assume_architecture(architecture):
            assert [chosen(size) for size in (8, 9)] == expected
    with override_config("kernel", "other"):
        assert chosen(8) == "other"
        with pytest.raises(RuntimeError, match="kernel: its configuration is overridden"), override_config("kernel", 1):
            pass
    assert chosen(8) == "small"


def test_unknown_and_repeated_names_are_refused(chosen):
    with pytest.raises(ValueError, match="kernal: no imported kernel"), override_config("kernal", "other"):
        pass
    with pytest.raises(ValueError, match="kernel: two functions choose"):
        launch_config("kernel")(chosen)


@pytest.mark.parametrize(("architecture", "expected"), [(80, 80), (86, 80), (89, 80), (90, 90), (100, 90), (120, 80)])
def test_families(architecture, expected):
    assert family_of(architecture) == expected
    with assume_architecture(architecture):
        assert gpu_family() == expected


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (Samples(64, 1024, 480), (512, 8, 16)),  # whole rows; as many tiles as keep 512 programs
        (Samples(1, 8, 480), (512, 8, 1)),  # one tile
        (Samples(1, 3, 480), (512, 4, 1)),  # no more rows than there are
        (Samples(2, 100000, 480), (512, 8, 32)),  # at most 32 tiles
        (Samples(1, 0, 480), (512, 1, 1)),
        (Samples(4, 64, 5000), (8192, 1, 1)),  # a row wider than a tile
    ],
)
def test_tiles_of_whole_rows(samples, expected):
    tiling = RowConfig(elements=4096, min_programs=512, max_tiles=32, num_warps=4).tiling(samples)
    assert (tiling.columns, tiling.rows, tiling.iterations) == expected
    assert tiling.num_warps == 4
    assert tiling.rows_per_program == tiling.rows * tiling.iterations


def test_tiles_of_columns():
    config = RowConfig(elements=2048, columns=1024, min_programs=512, max_tiles=32, num_warps=4)
    assert config.tiling(Samples(4, 1024, 320))[:3] == (512, 4, 2)
    # Four blocks of columns count as programs, so that a quarter of the programs of rows will do.
    assert config.tiling(Samples(4, 1024, 4096))[:3] == (1024, 2, 16)


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
    assert_parity(lambda x, weight: geglu_linear(x, weight, form="one_kernel"), {"x": x, "weight": weight}, "triton")


NORM = _example("td_layer_norm", td_layer_norm)
GROUP_NORM = _example("td_group_norm", EXAMPLES["td_group_norm"].function)
SHUFFLE = _example("pixel_shuffle_td_norm_add", lambda **inputs: pixel_shuffle_td_norm_add(upscale_factor=2, **inputs))
# Kernel -> a call that runs it, small for the interpreter, and the sizes its configuration is chosen by.
CALLS: dict[str, tuple[Callable[[torch.device], None], tuple[int, ...]]] = {
    "geglu_fwd": (_example("geglu", geglu), (16,)),
    "geglu_bwd": (_example("geglu", geglu), (16,)),
    "geglu_linear": (_linear, (20,)),
    "td_norm_fwd": (NORM, (48,)),
    "td_norm_bwd": (NORM, (48,)),
    "time_gate_reduce": (NORM, (48,)),
    "td_norm_fwd_wide": (_wide_norm, (9000,)),
    "td_norm_bwd_wide": (_wide_norm, (9000,)),
    "td_norm_bwd_wide_sums": (_wide_norm, (9000,)),
    **{f"td_group_norm_{kind}": (GROUP_NORM, (16,)) for kind in ("moments_fwd", "fwd", "sums_bwd", "bwd")},
    "shuffle_norm_add_fwd": (SHUFFLE, (8,)),
    "shuffle_norm_add_bwd": (SHUFFLE, (8,)),
    **{f"depthwise_conv_{kind}, K={K}": (_convolution(K), (K, 8)) for kind in ("fwd", "weight") for K in (3, 5, 7)},
}


@pytest.mark.parametrize("kernel", ["geglu_fwd", "td_norm_bwd", "depthwise_conv_weight, K=3", "shuffle_norm_add_fwd"])
def test_overriding_changes_the_launch(kernel, device, monkeypatch):
    launched = []
    run = Launch.__call__

    def recorded(self, *pointers):
        launched.append((self._kernel, self._grid, str(self._options)))
        return run(self, *pointers)

    monkeypatch.setattr(Launch, "__call__", recorded)
    call, sizes = CALLS[kernel]
    kernel = kernel.partition(",")[0]
    call(device)
    usual, launched[:] = set(launched), []
    with override_config(kernel, candidates(kernel, *sizes)[-1]):
        call(device)
    assert set(launched) - usual, "the same launches"
    launched.clear()
    call(device)
    assert set(launched) == usual


@pytest.mark.slow
@pytest.mark.parametrize("kernel", CALLS)
def test_every_candidate_is_right(kernel, device):
    call, sizes = CALLS[kernel]
    kernel = kernel.partition(",")[0]
    configs = candidates(kernel, *sizes)
    assert len(configs) > 1
    # In the interpreter the number of warps changes nothing: one of those that differ in nothing else will do.
    seen = set()
    for config in configs:
        kind = re.sub(r"num_warps=\d+", "", str(config))
        if device.type == "cuda" or kind not in seen:
            seen.add(kind)
            with override_config(kernel, config):
                call(device)


def test_every_kernel_has_candidates_and_a_call():
    assert set(CANDIDATES) == set(launch.launch_configs)
    assert {name.partition(",")[0] for name in CALLS} == set(CANDIDATES)


def test_a_launch_checks_its_pointers():
    from dimr_kernels.ops import geglu_triton

    kernel = geglu_triton._geglu_fwd_kernel
    constants = {name: 1 for name in kernel.arg_names if name.isupper() and len(name) > 1}
    pointers = [name for name in kernel.arg_names if name.endswith("_ptr")]
    numbers = (1,) * (len(kernel.arg_names) - len(constants) - len(pointers))
    incomplete = launch.Launch(kernel, (1,), numbers, constants)
    with pytest.raises(TypeError, match=rf"_geglu_fwd_kernel: it takes {len(pointers)} pointers, got 1"):
        incomplete(torch.empty(1))
