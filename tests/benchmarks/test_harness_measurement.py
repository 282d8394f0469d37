"""Parity before timing, skip reasons, and the record that a report reads."""

from __future__ import annotations

from functools import partial

import pytest
import torch

import dimr_kernels as dk
from benchmarks import measurement, timing
from benchmarks.measurement import Case, Machine, cases, error_against_float64, measure, samples_to_check
from benchmarks.reporting.records import parse
from benchmarks.rivals import Unavailable
from benchmarks.shapes import Shapes
from benchmarks.test_pixel_shuffle import Shuffle
from benchmarks.test_pixel_shuffle import workload as pixel_shuffle
from benchmarks.test_td_norm import Norm
from benchmarks.test_td_norm import workload as td_norm
from benchmarks.workload import (
    FORWARD_BACKWARD,
    Direction,
    Rival,
    bind,
    first_samples,
    random,
    with_both_directions,
)

from .harness import CPU, Benchmark, machine, scaled, scaling


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("fault", [{"forward_error": 1e-4}, {"gradient_error": 1e-4}], ids=str)
def test_a_wrong_fused_form_is_not_timed(fault, direction):
    """Time no direction of a wrong form: a fast forward with wrong gradients does not count."""
    benchmark = Benchmark()
    with pytest.raises(AssertionError, match="allowed"):
        measure(benchmark, Case("target", scaling(partial(scaled, **fault)), "fused", direction), machine())
    assert benchmark.calls == 0
    assert benchmark.extra_info == {}


def test_a_right_fused_form_is_checked_once_and_timed():
    seen = []

    def watched(x):
        seen.append(x.dtype)
        return scaled(x)

    here = machine()
    for direction in ("forward", "backward"):
        benchmark = Benchmark()
        measure(benchmark, Case("target", scaling(watched), "fused", direction), here)
        assert benchmark.calls == timing.ROUNDS
    assert seen.count(torch.float64) == 2  # one in the check, one in the forward's error


def test_wrong_cpp_operator_is_not_timed(monkeypatch):
    from dimr_kernels.ops import pixel_shuffle as op

    if dk.dispatch.unavailable_reason("cuda", CPU) is not None:
        pytest.skip("the compiled extension is not available")
    right = op.pixel_shuffle_add_op
    monkeypatch.setattr(op, "pixel_shuffle_add_op", lambda x, y, *rest: right(x, y, *rest) + 1e-3 * y)
    case = Case("target", pixel_shuffle(Shuffle("nhwc", 2, 2, 8), torch.float32, CPU), "fused", "forward")
    with pytest.raises(AssertionError, match=r"out\.0"):
        measure(Benchmark(), case, machine())


@pytest.mark.parametrize("implementation", ["fused", "eager", "copy"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_record(implementation, direction):
    """Check that a record has everything that a report reads."""
    workload = scaling(matmul=True, rivals={"copy": Rival(scaled, note="for comparison")})
    benchmark = Benchmark()
    measure(benchmark, Case("sweep", workload, implementation, direction), machine())
    record = parse(benchmark.extra_info, "here")
    assert (record.operator, record.shape, record.batch, record.width) == ("scaled", "4 x 6", 4, 6)
    assert (record.direction, record.implementation, record.scope) == (direction, implementation, "sweep")
    assert record.wall_us == 1000
    assert record.gigabytes_per_second == pytest.approx(192 / 0.001 / 1e9)
    assert record.fraction_of_copy == pytest.approx(192 / 0.001 / 1e10)
    assert (record.relative_error_float64 is None) == (direction == "backward")
    assert record.kernel_us is None
    assert record.peak_memory_bytes is None
    assert benchmark.extra_info["matmul_teraflops_ceiling"] == 1
    assert benchmark.extra_info.get("note") == ("for comparison" if implementation == "copy" else None)
    assert benchmark.group == f"scaled {direction}"


def test_facts():
    pytest.importorskip("cpuinfo", reason="pytest-benchmark, which brings cpuinfo, is not installed")
    facts = Machine(CPU, torch.float32).facts
    assert set(facts) == set(machine().facts)
    assert facts["architecture"] == "cpu"
    assert facts["torch"] == torch.__version__
    assert facts["device"]


def test_error_is_of_what_was_timed(monkeypatch):
    """Compute a rival's error from its own outputs: the whole batch goes in, the first samples are compared."""
    monkeypatch.setitem(measurement.CHECKED_ELEMENTS, "cpu", 24)  # two samples' inputs and outputs
    batches = []

    def off_by_an_eighth(x):
        batches.append(x.shape[0])
        return 2.25 * x

    here = machine()
    assert error_against_float64(scaling(), Rival(off_by_an_eighth), here) == pytest.approx(0.125, rel=1e-5)
    assert batches == [4]
    of_its_own = Rival(off_by_an_eighth, definition=lambda x: 2.25 * x)
    assert error_against_float64(scaling(), of_its_own, here) < 1e-6


def test_checks_stay_within_memory(monkeypatch):
    monkeypatch.setitem(measurement.CHECKED_ELEMENTS, "cpu", 1000)
    workload = td_norm(Norm("td_layer_norm", 64, 5, 16), torch.float32, CPU)
    count = samples_to_check(workload, machine())
    assert 1 <= count < 8
    inputs = first_samples(workload.make_inputs(), workload.batched, count)
    assert inputs["x"].shape == (count, 5, 16)
    assert inputs["t"].shape == (count,)
    assert inputs["p1"].shape == (16,)


def on_a_gpu(monkeypatch, peak: int, free: int) -> None:
    monkeypatch.setattr(timing, "rotated_bytes", lambda device: 400)
    monkeypatch.setattr(timing, "peak_memory", lambda run, device: (run(), peak)[1])
    monkeypatch.setattr(timing, "free_bytes", lambda device: free)


@pytest.mark.parametrize(("free", "fits"), [(3 * (96 + 100), True), (3 * (96 + 100) - 1, False)])
def test_memory(monkeypatch, free, fits):
    """Rotate three copies of 192 bytes through 400; each holds its 4 x 6 float32 inputs and 100 bytes more."""
    on_a_gpu(monkeypatch, 100, free)
    here = machine()
    here.device = torch.device("cuda")
    case = Case("large", scaling(), "eager", "backward")
    arguments = case, Rival(scaled), ("x",), here
    if fits:
        calls, record = measurement.prepare(*arguments)
        assert len(calls) == 3
        assert record == {"peak_memory_bytes": 100}
    else:
        with pytest.raises(Unavailable, match=r"3 copies need .* GiB, .* GiB are free"):
            measurement.prepare(*arguments)


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (Unavailable("no such kernel"), "no such kernel"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nand more"), "CUDA out of memory. Tried"),
    ],
)
def test_what_cannot_run_skips_with_the_reason(monkeypatch, problem, reason):
    from benchmarks import conftest

    def refuse(*arguments):
        raise problem

    monkeypatch.setattr(conftest, "measure_case", refuse)
    case = Case("target", scaling(), "eager", "forward")
    with pytest.raises(pytest.skip.Exception) as skipped:
        conftest.measure_or_skip(Benchmark(), case)
    assert skipped.value.msg == f"scaled-target-4x6-eager-forward: {reason}"


def test_every_call_has_memory_of_its_own():
    made = []

    def make_inputs():
        made.append(random(4, 6, dtype=torch.float32, device=CPU))
        return {"x": made[-1]}

    workload = scaling(make_inputs=make_inputs, directions={"forward": Direction(-(-timing.ROTATED_ON_CPU // 5))})
    calls, _ = measurement.prepare(Case("target", workload, "eager", "forward"), Rival(lambda x: x), (), machine())
    used = [call()[0].data_ptr() for call in calls]
    assert len(set(used)) == len(calls) == 5
    benchmark, turns = Benchmark(), []
    measurement.time_call(benchmark, [partial(turns.append, i) for i in range(5)], CPU)
    assert turns == [i % 5 for i in range(5 + timing.ROUNDS)]


def test_forward_and_backward_in_one_call():
    workload = with_both_directions(scaling(directions={
        "forward": Direction(100, flops=1), "dx": Direction(10, ("x",), 3), "dw": Direction(7, ("w", "x"), 5),
    }))  # fmt: skip
    both = workload.directions[FORWARD_BACKWARD]
    assert both == Direction(117, ("x", "w"), 9, with_forward=True)
    calls = []

    def function(x, w):
        calls.append(True)
        return x * w

    call = bind(function, {"x": torch.ones(3), "w": torch.full((3,), 5.0)}, both.gradients, both.with_forward)
    assert len(calls) == 1
    dx, dw = call()
    assert len(calls) == 2
    assert torch.equal(dx, 5 * dw)
    call()


def test_forward_and_backward_have_a_record():
    here = machine()
    (case,) = [
        case
        for case in cases(Shapes((), (), (), (0,)), lambda *_: scaling(), None, torch.float32, CPU)
        if (case.implementation, case.direction) == ("fused", FORWARD_BACKWARD)
    ]
    benchmark = Benchmark()
    measure(benchmark, case, here)
    record = parse(benchmark.extra_info, "here")
    assert (record.direction, record.bytes) == (FORWARD_BACKWARD, 384)
    assert record.multiply_add_teraflops_ceiling is None  # no operation is counted


def test_counted_operations_are_held_against_multiply_adds():
    workload = scaling(directions={"forward": Direction(192, flops=10**9)})
    benchmark = Benchmark()
    measure(benchmark, Case("target", workload, "eager", "forward"), machine())
    record = parse(benchmark.extra_info, "here")
    assert record.multiply_add_teraflops_ceiling == 2
    assert record.fraction_of_arithmetic == pytest.approx(0.5)  # 10**9 in a millisecond


def test_gradients_of_some_inputs_alone():
    call = bind(lambda x, weight: x * weight, {"x": torch.ones(3), "weight": torch.full((3,), 5.0)}, ("x",))
    (dx,), (again,) = call(), call()
    assert torch.equal(dx, again)
    assert not dx.requires_grad
    assert dx.shape == (3,)
