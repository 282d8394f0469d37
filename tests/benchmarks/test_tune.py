from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("triton")
from benchmarks import tune

RECORD = {"kernel": "k", "operator": "o", "shape": "s", "device": "A GPU", "present": False}


@pytest.mark.parametrize("operator", tune.OPERATORS)
def test_every_problem_has_candidates_and_a_case_to_compile(operator):
    found = list(tune.problems(operator, torch.device("meta")))
    assert found
    for problem in found:
        candidates = tune.candidates(problem.kernel, *problem.sizes)
        assert len(candidates) > 1
        assert problem.direction in problem.workload.directions
        case = tune.case_of(problem, candidates[-1])
        assert case.num_warps == candidates[-1].num_warps
    kernels = {problem.kernel for problem in found}
    assert all(kernel.startswith(("time_gate", operator)) for kernel in kernels)


def test_norm_kernels_by_width():
    class Shape:
        width = 38400

    wide = {kernel for kernel, *_ in tune.kernels_for("td_norm", Shape)}
    assert wide == {"td_norm_fwd_wide", "td_norm_bwd_wide", "td_norm_bwd_wide_sums", "time_gate_reduce"}


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([3.0, 4.0, None], "the present choice is the best of 2: 3.00 us, A"),
        ([3.0, 2.0, None], "2.00 us with B; the present choice 3.00 us"),
        ([None, 2.0, None], "2.00 us with B; the present choice has no time"),
        ([None, None, None], "nothing could be timed: spills 8 bytes"),
    ],
)
def test_verdict(times, expected):
    records = [
        {"config": config, "present": config == "A"} | ({"kernel_us": us} if us else {"dropped": "spills 8 bytes"})
        for config, us in zip("ABC", times, strict=True)
    ]
    assert tune.verdict(records) == expected


def test_times_of_other_kernels_are_kept(tmp_path):
    tune.save([RECORD | {"kernel_us": 1.0}, RECORD | {"kernel": "other", "kernel_us": 2.0}], tmp_path)
    path = tune.save([RECORD | {"kernel_us": 3.0}], tmp_path)
    assert path == tmp_path / "a-gpu" / "tuning.json"
    assert {r["kernel"]: r["kernel_us"] for r in json.loads(path.read_text())} == {"k": 3.0, "other": 2.0}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "timing needs a GPU"), (["conv"], "no operator is called conv; there are depthwise_conv, geglu")],
)
def test_says_what_it_needs(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(tune, "TRITON_INTERPRETS", False)
    with pytest.raises(SystemExit):
        tune.main(arguments)
    assert message in capsys.readouterr().err


def test_what_spills_is_dropped(monkeypatch):
    problem = next(tune.problems("geglu", torch.device("meta")))
    config = tune.candidates(problem.kernel, *problem.sizes)[0]

    class Spilled:
        spill_bytes = 88

    monkeypatch.setattr(tune, "compile_case", lambda case, architecture: Spilled())
    assert tune.compiled(problem, config, 90) == "spills 88 bytes"

    def fail(case, architecture):
        raise RuntimeError("first line\nptxas: no")

    monkeypatch.setattr(tune, "compile_case", fail)
    assert tune.compiled(problem, config, 90) == "does not compile: ptxas: no"


def test_a_candidate_that_is_wrong_is_dropped(monkeypatch):
    problem = next(tune.problems("geglu", torch.device("meta")))

    def wrong(problem, config, machine):
        raise AssertionError("out.0: error 1.0, allowed 0.1")

    monkeypatch.setattr(tune, "measured", wrong)
    records = tune.tune(problem, type("Machine", (), {"facts": {"device": "A GPU"}}))
    assert [r["dropped"] for r in records] == ["AssertionError: out.0: error 1.0, allowed 0.1"] * len(records)
    assert [r["present"] for r in records] == [True] + [False] * (len(records) - 1)
