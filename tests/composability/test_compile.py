"""``torch.compile``: one graph for every batch size, and CUDA graphs.

``tests/dimr_kernels/test_every_operator.py`` compiles each operator whole, and all of them by Inductor at one size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import dimr_kernels as dk
from dimr_kernels import functional as F
from dimr_kernels.dispatch import FUSED_FORMS, unavailable_reason
from tests.support.operators import GATES
from tests.support.parity import results_of as results_by_name
from tests.support.requirements import needs_inductor

from .cells import DEVICE, assert_same, each_cell, plain_results, results_of


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    """Reset the compiler: subjects share one ``forward``, and ``recompile_limit`` bounds its recompilations."""
    torch.compiler.reset()


@pytest.mark.slow
@each_cell("torch.compile, dynamic=True")
def test_one_graph_for_every_batch(cell):
    counter = CompileCounterWithBackend("aot_eager")
    module = cell.module()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    with cell.running():
        results_of(compiled, module, cell.inputs(batch=7))  # torch treats equal sizes as one; no other is 7
        graphs = counter.frame_count  # two if dynamo restarted to specialise a number such as eps
        found = results_of(compiled, module, cell.inputs(batch=5))
    assert_same(found, plain_results(cell, batch=5))
    assert counter.frame_count == graphs


@pytest.mark.skipif(DEVICE.type != "cuda", reason="on a CPU this mode records no CUDA graph")
@each_cell("torch.compile, mode='reduce-overhead'")
def test_reduce_overhead(cell):
    module, expected = cell.module(), plain_results(cell)
    compiled = torch.compile(module, mode="reduce-overhead", fullgraph=True)
    with cell.running():
        for _ in range(3):  # plain, recorded, replayed
            torch.compiler.cudagraph_mark_step_begin()
            found = {name: value.clone() for name, value in results_of(compiled, module, cell.inputs()).items()}
            assert_same(found, expected, rtol=1e-3, atol=1e-4)


def _gates(C: int) -> dict[str, Any]:
    return dict.fromkeys(GATES, (C,))


# Operator -> the shapes of its arguments for images [B, H, W, C], and the others. "x" as a shape: the argument x again.
SIZED: dict[str, Callable[..., tuple[dict[str, Any], dict[str, Any]]]] = {
    "td_layer_norm": lambda B, H, W, C: ({"x": (B, H, W, C), "t": (B,), "residual": (B, H, W, C), **_gates(C)}, {}),
    "td_rms_norm": lambda B, H, W, C: (
        {"x": (B, H * W, C), "t": (B,), **{name: (C,) for name in GATES if name[:5] in ("p1", "p2", "scale")}},
        {},
    ),
    "td_group_norm": lambda B, H, W, C: ({"x": (B, H, W, C), "t": (B,), **_gates(C)}, {"num_groups": 4}),
    "geglu": lambda B, H, W, C: ({"h": (B, H, W, 2 * C)}, {}),
    "geglu_linear": lambda B, H, W, C: ({"x": (B, H, C), "weight": (6 * C, C), "bias": (6 * C,)}, {}),
    "depthwise_conv2d": lambda B, H, W, C: (
        {"x": (B, H, W, C), "weight": (C, 1, 7, 7), "bias": (C,), "residual": "x"},
        {},
    ),
    "pixel_shuffle_add": lambda B, H, W, C: (
        {"x": (B, H, W, 4 * C), "y": (B, 2 * H, 2 * W, C)},
        {"upscale_factor": 2},
    ),
    "pixel_unshuffle": lambda B, H, W, C: ({"x": (B, 2 * H, 2 * W, C)}, {"downscale_factor": 2}),
    "pixel_shuffle_td_norm_add": lambda B, H, W, C: (
        {"x": (B, H, W, 4 * C), "y": (B, 2 * H, 2 * W, C), "t": (B,), **_gates(C)},
        {"upscale_factor": 2},
    ),
    "linear": lambda B, H, W, C: ({"x": (B, H, C), "weight": (3 * C, C), "bias": (3 * C,)}, {}),
    "attention": lambda B, H, W, C: (dict.fromkeys("qkv", (B, 2, H * W, C)), {}),
}
SIZES = ((2, 6, 5, 8), (3, 9, 7, 12), (4, 7, 11, 20))


def _backend_for(operator: str, form: str) -> str:
    forms = FUSED_FORMS[operator].cpu + FUSED_FORMS[operator].gpu if operator in FUSED_FORMS else ()
    return form if form == "eager" or form in forms else "auto"


@pytest.mark.slow
@needs_inductor
@pytest.mark.parametrize(
    ("form", "dynamic"),  # None: static at the first size, dynamic from the second on
    [("eager", None), ("eager", True), ("cpp", None), ("cpp", True), ("triton", None), ("triton", True)],
)
def test_three_sizes_in_turn(form: str, dynamic: bool | None) -> None:
    """All operators by Inductor, in one graph, since one compilation for each would take several times as long."""
    reason = None if form == "eager" else unavailable_reason(form, DEVICE)
    if reason is not None:
        pytest.skip(reason)

    def together(**inputs: Tensor) -> tuple[Tensor, ...]:
        outputs: list[Tensor] = []
        for name, sized in SIZED.items():
            shapes, options = sized(1, 1, 1, 8)
            own = {key: inputs[f"{name}: {'x' if shape == 'x' else key}"] for key, shape in shapes.items()}
            with dk.use_backend(_backend_for(name, form)):
                output = getattr(F, name)(**own, **options)
            outputs.extend(output if isinstance(output, tuple) else (output,))
        return tuple(outputs)

    compiled = torch.compile(together, fullgraph=True, dynamic=dynamic)
    for size in SIZES:
        inputs = {
            f"{name}: {key}": torch.randn(shape, device=DEVICE, requires_grad=True)
            for name, sized in SIZED.items()
            for key, shape in sized(*size)[0].items()
            if shape != "x"
        }
        assert_same(
            results_by_name(compiled, inputs, "auto"), results_by_name(together, inputs, "auto"), rtol=1e-4, atol=1e-4
        )


def test_every_operator_has_sizes() -> None:
    assert set(SIZED) == set(dk.functional.__all__) - {"apply_linear"}  # which takes a module
