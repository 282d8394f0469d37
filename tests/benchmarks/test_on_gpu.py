"""The call on a lent GPU, with steps of seconds on this machine."""

from __future__ import annotations

import json
import signal
import sys
import tarfile
from pathlib import Path

import pytest

import benchmarks
from benchmarks import on_gpu
from benchmarks.on_gpu import ROOT, Run, Step, all_steps


def python(name: str, code: str, seconds: float = 30, **options) -> Step:
    return Step(name, seconds, (sys.executable, "-c", code), **options)


def outcomes(run: Run) -> dict[str, str]:
    return {name: verdict.outcome for name, verdict in run.verdicts.items()}


def packed(output: Path) -> set[str]:
    with tarfile.open(output / "results.tar.gz") as archive:
        return set(archive.getnames())


def test_a_step_that_overruns_is_cut_and_the_others_run(tmp_path, monkeypatch):
    monkeypatch.setattr(on_gpu, "GRACE_SECONDS", 0.5)
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    run = Run(tmp_path, 60)
    run.run(
        [
            python("hangs", deaf, seconds=2),
            python("fails", "print('FAILED test_a'); print('E   ValueError: b'); raise SystemExit(1)"),
            python("passes", "print('one'); print('two')"),
            Step("missing", 5, ("no-such-program",)),
        ]
    )
    assert outcomes(run) == {"hangs": "cut", "fails": "failed", "passes": "passed", "missing": "failed"}
    assert run.verdicts["hangs"].last_line == "on"
    assert run.verdicts["hangs"].seconds < 10
    assert run.verdicts["fails"].failures == ["FAILED test_a", "E   ValueError: b"]
    assert run.verdicts["passes"].last_line == "two"
    assert "no-such-program" in run.verdicts["missing"].last_line


@pytest.mark.parametrize("inherited", [signal.SIG_DFL, signal.SIG_IGN])  # ignored: in the background of a script
def test_an_interrupted_step_may_still_write_its_results(tmp_path, inherited):
    code = (
        "import time, sys\nprint('begun', flush=True)\n"
        f"try: time.sleep(60)\nexcept KeyboardInterrupt: open({str(tmp_path / 'late.json')!r}, 'w').write('{{}}')"
    )
    before = signal.signal(signal.SIGINT, inherited)
    try:
        Run(tmp_path, 60).run([python("measures", code, seconds=2)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert "late.json" in packed(tmp_path)


def test_results_are_packed_after_each_step(tmp_path):
    seen = f"import tarfile; print(sorted(tarfile.open({str(tmp_path / 'results.tar.gz')!r}).getnames()))"
    run = Run(tmp_path, 60)
    run.run([python("first", "print(1)"), python("second", seen)])
    assert run.verdicts["second"].last_line == "['first.log', 'verdict.json']"
    assert packed(tmp_path) == {"first.log", "second.log", "verdict.json"}


def test_a_step_beside_the_others_ends_before_what_needs_it(tmp_path):
    made = tmp_path / "made"
    run = Run(tmp_path, 60)
    run.run(
        [
            python("build", f"import time; time.sleep(2); open({str(made)!r}, 'w')", beside=True),
            python("meanwhile", f"import os; raise SystemExit(os.path.exists({str(made)!r}))"),
            python("needs it", f"import os; raise SystemExit(not os.path.exists({str(made)!r}))", after="build"),
        ]
    )
    assert outcomes(run) == {"build": "passed", "meanwhile": "passed", "needs it": "passed"}


def test_the_verdict_names_the_gpu_and_every_step_also_those_without_time(tmp_path, capsys):
    assert on_gpu.main([str(tmp_path), "--seconds", "0"]) == 1
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert [step["name"] for step in verdict["steps"]] == [step.name for step in all_steps(tmp_path)]
    assert {step["outcome"] for step in verdict["steps"]} == {"not run"}
    assert {"gpu", "driver", "python", "versions"} <= set(verdict)
    assert verdict["versions"]["torch"]


def test_an_unknown_step_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        on_gpu.main([str(tmp_path), "--only", "speed"])
    assert "no step is called speed; there are environment, build, parity" in capsys.readouterr().err


def test_steps_name_files_that_exist():
    named = {word for step in all_steps(Path("out")) for word in step.command if word.endswith(".py")}
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_every_operator_is_timed():
    timed = {step.name for step in all_steps(Path("out"))}
    folder = Path(benchmarks.__file__).parent
    assert {path.stem.removeprefix("test_") for path in folder.glob("test_*.py")} <= timed


def test_what_comes_first_fits_a_call_of_nine_minutes():
    """Half of each limit, as expected of steps that work: right, timed, and the model's forward."""
    steps = all_steps(Path("out"))
    upto = [step.name for step in steps].index("model") + 1
    assert sum(step.seconds for step in steps[:upto] if not step.beside) / 2 < 530


@pytest.mark.slow
def test_a_call_on_a_cpu(tmp_path):
    """Whole and real, with what takes seconds here."""
    assert on_gpu.main([str(tmp_path), "--seconds", "120", "--only", "environment", "ceilings"]) == 0
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert [step["outcome"] for step in verdict["steps"]] == ["passed", "passed"]
