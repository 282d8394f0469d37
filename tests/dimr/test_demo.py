from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import dimr
import dimr_kernels as dk
from dimr.cli import main
from dimr.demo.results import describe_kernels

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("PIL")

FEW = ["--steps", "6", "--device", "cpu", "--per-class", "2", "--sampling-steps", "3"]
RESULTS = ("samples.png", "checkpoint/model.safetensors")


def demo(folder, *more) -> int:
    return main(["demo", "--output", str(folder), *map(str, more)])


def command(folder, *more) -> list[str]:
    return [sys.executable, "-m", "dimr", "demo", "--output", str(folder), "--device", "cpu", *map(str, more)]


def one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def wait_for_step(process: subprocess.Popen[str], step: int) -> None:
    """Read the progress bar until it shows at least this many steps."""
    text, deadline = "", time.monotonic() + 60
    while time.monotonic() < deadline:
        character = process.stderr.read(1)
        assert character, f"ended early: {text[-500:]}"
        text = "" if character == "\r" else text + character
        done = text.rpartition("| ")[2].partition("/")[0]
        if "training" in text and text.endswith("/") and done.strip().isdigit() and int(done) >= step:
            return
    raise AssertionError(f"no step {step} in time: {text[-500:]}")


def test_too_short_a_run_is_whole_and_says_it_is_not_good(tmp_path, capsys):
    assert demo(tmp_path, *FEW) == 1
    out = capsys.readouterr().out
    assert "NOT good enough" in out
    for name in (*RESULTS, "losses.png", "training_state.pt", "checkpoint/config.json"):
        assert (tmp_path / name).stat().st_size > 0
    report = json.loads((tmp_path / "report.json").read_text())
    quality = report["quality"]
    assert 0 <= quality["accuracy"] < quality["wanted_accuracy"] == 0.85
    assert quality["passed"] is False
    assert quality["accuracy"] == pytest.approx(sum(quality["accuracy_per_class"]) / 10)
    assert quality["classifier"]["accuracy_on_unseen_real_digits"] > 0.95
    assert report["model"]["config"] == dimr.load_model(tmp_path / "checkpoint").config.to_dict()
    assert report["steps"]["total"] == 6
    assert report["training"]["seed"] == 0


def test_same_seed_same_files(tmp_path):
    for i, (name, seed) in enumerate((("a", 5), ("b", 5), ("c", 6))):
        torch.manual_seed(i)  # which must not matter
        demo(tmp_path / name, *FEW, "--seed", seed)
    for result in RESULTS:
        first, second, third = ((tmp_path / name / result).read_bytes() for name in "abc")
        assert first == second, result
        assert first != third, result


def test_report_names_the_operators_that_ran(device):
    config = dimr.DiMRConfig(1, 8, dims=(8, 8), layers=(1, 1), num_heads=1, num_classes=2, kernel_size=3)
    model = dimr.DiMR(config).to(device)
    with dk.use_backend("eager"):
        assert describe_kernels(model)["fused"] == []
    with dk.use_backend("triton"):
        found = describe_kernels(model)
    assert found["backend"] == "triton"
    assert any("geglu" in name for name in found["fused"])
    assert any("norm" in name for name in found["fused"])


def test_sample_reads_the_checkpoint(tmp_path):
    demo(tmp_path, *FEW)
    arguments = ["sample", str(tmp_path / "checkpoint"), "--output", str(tmp_path / "more.png"), "--classes", "0,9"]
    assert main([*arguments, "--per-class", "2", "--steps", "2"]) == 0
    assert (tmp_path / "more.png").stat().st_size > 0


def test_a_run_is_not_overwritten_by_mistake(tmp_path, capsys):
    demo(tmp_path, *FEW)
    before = (tmp_path / "training_state.pt").read_bytes()
    capsys.readouterr()
    assert demo(tmp_path, *FEW) == 2
    assert "--resume" in capsys.readouterr().err
    assert (tmp_path / "training_state.pt").read_bytes() == before
    assert demo(tmp_path, *FEW, "--overwrite") == 1


def test_resume_needs_a_whole_run(tmp_path, capsys):
    assert demo(tmp_path, "--resume") == 2
    assert "no run in" in capsys.readouterr().err
    demo(tmp_path, *FEW)
    capsys.readouterr()
    assert demo(tmp_path, "--resume", "--steps", 9) == 2
    assert "--steps was decided" in capsys.readouterr().err
    state = tmp_path / "training_state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    assert demo(tmp_path, "--resume", "--device", "cpu") == 2
    assert "training_state.pt" in capsys.readouterr().err


def test_output_that_cannot_be_a_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "inner"):
        assert demo(folder, *FEW) == 2
        assert "file" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_ctrl_c_then_resume_equals_an_uninterrupted_run(tmp_path):
    options = ("--steps", 25, "--per-class", 2, "--sampling-steps", 3)
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    process = subprocess.Popen(
        command(stopped, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=one_thread()
    )
    wait_for_step(process, 3)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"dimr demo --output {stopped} --resume" in out
    assert not (stopped / "samples.png").exists()
    assert dimr.load_model(stopped / "checkpoint").config.num_classes == 10
    for folder, more in ((stopped, ("--resume", *options[2:])), (whole, options)):
        done = subprocess.run(command(folder, *more), capture_output=True, text=True, env=one_thread())
        assert done.returncode == 1, done.stderr
    assert json.loads((stopped / "report.json").read_text())["steps"]["resumed_from"] >= 3
    for result in RESULTS:
        assert (stopped / result).read_bytes() == (whole / result).read_bytes(), result
