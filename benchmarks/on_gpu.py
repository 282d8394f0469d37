"""One call on a machine with a GPU that is lent for minutes: is everything right, then how fast is it.

``python -m benchmarks.on_gpu OUTPUT [--seconds 530]``. The steps stand in the order of their worth. Each has a limit,
so that one that hangs costs no more than that; those that find no time left are named. After each step OUTPUT holds
``verdict.json``, with the GPU's name and versions, and everything so far in ``results.tar.gz``: a machine that is taken
away leaves what was found before. Only the standard library is needed here.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "triton", "numpy", "setuptools", "cmake", "ninja", "pybind11", "pytest", "pytest-xdist")
LEAST_SECONDS = 5.0
"""With less time left a step is not begun."""
GRACE_SECONDS = 10.0
"""From an interrupt, at which pytest-benchmark still writes its file, to the end by force."""
FAILURE = re.compile(r"^(?:FAILED|ERROR|E   .*Error).*", re.MULTILINE)

PARITY = (
    "every_operator", "td_norm", "td_norm_gates", "td_group_norm", "upsample", "geglu", "geglu_linear",
    "depthwise_conv", "norms", "launch", "inference", "warmup", "host_cost", "attention",
)  # fmt: skip
GPU_ONLY = (
    "tests/dimr_kernels/test_gpu_only.py", "tests/dimr_kernels/test_pixel_shuffle.py",
    "tests/dimr/test_inference_gpu.py", "tests/dimr/test_fused_parity.py", "tests/composability/test_gpu.py",
)  # fmt: skip
TIMED_FIRST = ("depthwise_conv", "td_norm", "geglu_linear", "shuffle_norm_add", "geglu", "pixel_shuffle")
TIMED_LATER = ("td_group_norm", "attention")
# The widths of DiMR-XL/2R, and the rivals that torch itself brings.
TIMED_CASES = "(fused or cudnn or aten or kernels) and (960 or 480 or 1920 or 38400)"
TIMED_MODEL = "test_forward and 2r and 64 and (engine or tidy or fused) and not compiled and not g-2r"
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")


@dataclass(frozen=True)
class Step:
    name: str
    seconds: float
    """Limit; less if less is left."""
    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    beside: bool = False
    """Run beside the steps that follow, up to the first that asks to be ``after`` it."""
    after: str | None = None


@dataclass
class Verdict:
    name: str
    outcome: str
    """"passed", "failed", "cut" at its limit, "not run", "running"."""
    seconds: float = 0.0
    last_line: str = ""
    failures: list[str] = field(default_factory=list)


def pytest_step(name: str, seconds: float, *arguments: str, processes: int = 0, after: str | None = None) -> Step:
    parallel: tuple[str, ...] = ()
    if processes and importlib.util.find_spec("xdist") is not None:
        parallel = ("-n", str(processes), "--dist", "worksteal")
    command = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *parallel, *arguments)
    return Step(name, seconds, command, after=after)


def benchmark_step(name: str, seconds: float, cases: str, output: Path) -> Step:
    options = ("--benchmark-only", "--benchmark-json", str(output / f"{name}.json"), "-k", cases)
    shapes = () if name == "model" else ("--shapes", "target")
    return pytest_step(name, seconds, f"benchmarks/test_{name}.py", *options, *shapes)


def all_steps(output: Path) -> list[Step]:
    """List the steps. Nothing else runs beside a measurement."""
    python = sys.executable
    parity = [f"tests/dimr_kernels/test_{name}.py" for name in PARITY]
    ceilings = "from benchmarks.conftest import MACHINE as m; print(m.facts, m.copy_bandwidth, m.matmul_flops)"
    results = ("--output", str(output))
    every_kernel = (python, "-m", "tests.abuse.every_kernel")
    # Without torch's cache each tensor is an allocation of its own, and an access just beyond it is seen.
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return [
        Step("environment", 30, (python, "-m", "dimr_kernels")),
        Step("build", 150, (python, "setup.py", "build_ext", "--inplace"), beside=True),
        pytest_step("parity", 170, "-m", "not slow", *parity, processes=12),
        Step("every_kernel", 60, every_kernel, after="build"),
        pytest_step("gpu_only", 70, "-m", "not slow", *GPU_ONLY, processes=8),
        Step("ceilings", 20, (python, "-c", ceilings)),
        *(benchmark_step(name, 45, TIMED_CASES, output) for name in TIMED_FIRST),
        benchmark_step("model", 60, TIMED_MODEL, output),
        *(
            Step(name, 60, ("compute-sanitizer", "--tool", name, "--error-exitcode", "1", *every_kernel), uncached)
            for name in SANITIZERS
        ),
        # What a longer call is for.
        *(benchmark_step(name, 60, TIMED_CASES, output) for name in TIMED_LATER),
        pytest_step("slow_tests", 600, "-m", "slow", *parity),
        Step("profile", 120, (python, "-m", "benchmarks.profile_model", "dimr-xl-2r", "--rows", "64", *results)),
        Step("tune", 1800, (python, "-m", "benchmarks.tune", *results)),
    ]  # fmt: skip


class Run:
    """Runs steps one after another and keeps what they said in a folder."""

    def __init__(self, output: Path, seconds: float) -> None:
        self._output = output
        self._end = time.monotonic() + seconds
        self._facts = facts()
        self._beside: dict[str, tuple[subprocess.Popen[bytes], float, Step]] = {}
        self.verdicts: dict[str, Verdict] = {}

    def run(self, steps: Sequence[Step]) -> None:
        # In the background of a script interrupts are ignored, and the steps would inherit that.
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            for step in steps:
                if step.after in self._beside:
                    self._finish(step.after)
                self._begin(step)
                if not step.beside and step.name in self._beside:
                    self._finish(step.name)
        finally:
            for name in list(self._beside):
                self._finish(name)

    def _left(self) -> float:
        return self._end - time.monotonic()

    def _begin(self, step: Step) -> None:
        if self._left() < LEAST_SECONDS:
            self._record(Verdict(step.name, "not run", last_line="no time left"))
            return
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **step.environment}
        with open(self._log(step.name), "wb") as log:
            try:
                process = subprocess.Popen(
                    step.command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
                )
            except OSError as error:
                self._record(Verdict(step.name, "failed", last_line=str(error)))
                return
        self._beside[step.name] = process, time.monotonic(), step
        if step.beside:
            self._record(Verdict(step.name, "running"))

    def _finish(self, name: str) -> None:
        process, start, step = self._beside.pop(name)
        limit = min(step.seconds - (time.monotonic() - start), self._left())
        try:
            code = process.wait(max(limit, 0))
            outcome = "failed" if code else "passed"
        except subprocess.TimeoutExpired:
            outcome = "cut"
            for ending, grace in ((signal.SIGINT, GRACE_SECONDS), (signal.SIGKILL, None)):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, ending)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(grace)
                    break
        text = self._log(name).read_text(errors="replace")
        last = (text.strip().splitlines() or [""])[-1][:200]
        failures = [line[:200] for line in FAILURE.findall(text)[:25]]
        self._record(Verdict(name, outcome, round(time.monotonic() - start, 1), last, failures))

    def _log(self, name: str) -> Path:
        return self._output / f"{name}.log"

    def _record(self, verdict: Verdict) -> None:
        self.verdicts[verdict.name] = verdict
        if verdict.outcome != "running":
            logger.info("%-16s %-7s %6.1f s  %s", verdict.name, verdict.outcome, verdict.seconds, verdict.last_line)
            for line in verdict.failures:
                logger.info("    %s", line)
        steps = [asdict(verdict) for verdict in self.verdicts.values()]
        (self._output / "verdict.json").write_text(json.dumps({**self._facts, "steps": steps}, indent=1) + "\n")
        self._pack()

    def _pack(self) -> None:
        """Write the archive beside the old one first: there is a whole one at any moment."""
        unfinished = self._output / "results.tar.gz.unfinished"
        with tarfile.open(unfinished, "w:gz") as archive:
            for path in sorted(self._output.iterdir()):
                if not path.name.startswith("results.tar.gz"):
                    archive.add(path, path.name)
        unfinished.replace(self._output / "results.tar.gz")


def facts() -> dict[str, Any]:
    """Name the GPU, its driver and the versions that the figures depend on."""
    found: dict[str, Any] = {"gpu": None, "driver": None}
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True).stdout.splitlines()
        if answer:
            found["gpu"], found["driver"] = (part.strip() for part in answer[0].split(",", 1))
    found["python"] = sys.version.split()[0]
    found["versions"] = dict(_versions())
    return found


def _versions() -> Iterator[tuple[str, str | None]]:
    for name in PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Test and time everything on a GPU, within a time limit.")
    parser.add_argument("output", type=Path, help="folder for logs, verdict.json and results.tar.gz")
    parser.add_argument("--seconds", type=float, default=530, help="for all steps together; default: 530")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="names of steps")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    output = options.output.resolve()
    steps = all_steps(output)
    if unknown := sorted(set(options.only or ()) - {step.name for step in steps}):
        parser.error(f"no step is called {', '.join(unknown)}; there are {', '.join(step.name for step in steps)}")
    output.mkdir(parents=True, exist_ok=True)
    run = Run(output, options.seconds)
    run.run([step for step in steps if not options.only or step.name in options.only])
    return int(any(verdict.outcome != "passed" for verdict in run.verdicts.values()))


if __name__ == "__main__":
    raise SystemExit(main())
