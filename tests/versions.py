"""Run this project with other versions of Python and its libraries: ``python -m tests.versions [CELL ...]``.

Each cell is a fresh environment in a temporary folder, made by uv (``pip install uv``), with a copy of the tracked
files. In it the package is installed, its extension is built, and the checks of ``CHECKS`` run. Results are added to
``docs/versions.json``, one cell after the other, and the table in ``docs/installing.md`` is written from that file.
Not part of CI, which runs the check "operators" with two versions of torch: a cell takes three to six minutes and up
to 7 GB of disk while it runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "versions.json"
PAGE = ROOT / "docs" / "installing.md"
BEGIN, END = "<!-- versions: begin -->\n", "<!-- versions: end -->"
EXTRAS = ("demo", "test", "train", "models")
LIBRARIES = (
    "torch", "triton", "numpy", "diffusers", "safetensors", "timm", "peft", "accelerate", "datasets", "torchvision",
    "scipy", "setuptools", "pybind11", "cmake",
)  # fmt: skip
LIMIT = 1200  # seconds for one step of a cell


@dataclasses.dataclass(frozen=True)
class Cell:
    """One environment: what is pinned; everything else is the newest that the index has and the pins admit."""

    python: str = "3.11"
    pins: tuple[str, ...] = ("torch==2.13.0",)
    overrides: tuple[str, ...] = ()  # requirements that replace this project's own
    built_with: str | None = None  # the torch that the extension is built with, if another than it runs with
    cuda: str = "off"  # DIMR_KERNELS_CUDA


CELLS = {
    "pinned torch": Cell(),
    # peft brings the newest transformers, which diffusers 0.31 does not import with.
    "oldest": Cell("3.10", ("torch==2.10.0", "diffusers==0.31.0", "transformers<5"), cuda="auto"),
    "torch 2.11": Cell(pins=("torch==2.11.0",)),
    "torch 2.12": Cell(pins=("torch==2.12.1",)),
    "torch 2.14": Cell(pins=("torch==2.14.1",)),
    "newest": Cell("3.13", ("torch==2.15.0",), overrides=("numpy>=2.5",), cuda="auto"),
    "Python 3.12": Cell("3.12"),
    "Triton 3.6": Cell(overrides=("triton==3.6.0",)),  # torch's CUDA build requires another
    "built with 2.10, run with 2.15": Cell(pins=("torch==2.15.0",), built_with="2.10.0"),
    "built with 2.15, run with 2.10": Cell(pins=("torch==2.10.0",), built_with="2.15.0"),
}

OPERATORS = (
    "extension", "registration", "dispatch", "td_norm", "td_group_norm", "norm_dtypes", "geglu", "geglu_linear",
    "depthwise_conv", "pixel_shuffle", "upsample", "attention",
)  # fmt: skip
MODELS = (
    "dimr_kernels/adoption", "dimr/test_diffusers_model.py", "dimr/test_diffusers_schedulers.py",
    "dimr/test_diffusers_pipeline.py", "dimr/test_checkpoints.py", "dimr/test_samplers.py",
)  # fmt: skip
DEMO = """
import json, subprocess, sys
command = ["demo", "--steps", "20", "--per-class", "2", "--sampling-steps", "4", "--output", "demo-output"]
done = subprocess.run([sys.executable, "-m", "dimr", *command], capture_output=True, text=True)
assert done.returncode in (0, 1), done.stderr  # 1: too few samples are recognised, after 20 steps
assert json.load(open("demo-output/report.json"))["steps"]["total"] == 20
print("loss", done.stderr.rpartition("loss=")[2].partition("]")[0])
"""


def pytest_of(*paths: str) -> tuple[str, ...]:
    return "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *(f"tests/{path}" for path in paths)


CHECKS = {
    "report": ("-m", "dimr_kernels"),
    "operators": pytest_of(*(f"dimr_kernels/test_{name}.py" for name in OPERATORS)),
    "models": pytest_of(*MODELS),
    "demo": ("-c", DEMO),
}
COLUMNS = ("operators", "models", "demo")


class StepFailed(Exception):
    """A step of a cell returned an error; the arguments are its name and the end of its output."""


class Environment:
    """A fresh environment beside a copy of the tracked files."""

    def __init__(self, folder: Path, uv: str, cell: Cell) -> None:
        self.copy, self.uv, self.cell = folder / "source", uv, cell
        self.python = folder / "environment" / "bin" / "python"
        dropped = ("PYTHONPATH", "VIRTUAL_ENV", "TRITON_INTERPRET", "DIMR_KERNELS_BACKEND")
        self.variables = {name: value for name, value in os.environ.items() if name not in dropped}
        self.variables |= {
            "VIRTUAL_ENV": str(self.python.parents[1]), "DIMR_KERNELS_CUDA": cell.cuda,
            "PATH": os.pathsep.join([str(self.python.parent), os.environ["PATH"]]),
        }  # fmt: skip
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
        for name in filter(None, tracked.stdout.split("\0")):
            if (ROOT / name).is_file():
                (self.copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.copy / name)

    def run(self, step: str, *command: str) -> str:
        done = subprocess.run(
            command, cwd=self.copy, env=self.variables, text=True, timeout=LIMIT,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if done.returncode:
            raise StepFailed(step, done.stdout[-4000:])
        return done.stdout

    def install(self) -> None:
        """Install what this project requires with the pins, then this project, built with the torch asked for."""
        self.run("environment", self.uv, "venv", "--python", self.cell.python, str(self.python.parents[1]))
        overrides = self.copy / "overrides.txt"
        overrides.write_text("\n".join(self.cell.overrides))
        extras = [part for extra in EXTRAS for part in ("--extra", extra)]
        install = (self.uv, "pip", "install", "--quiet")
        self.run(
            "install", *install, *self.cell.pins, "-r", "pyproject.toml", *extras, "peft", "--override", str(overrides)
        )
        if self.cell.built_with:
            self.run("install", *install, "--no-deps", f"torch=={self.cell.built_with}")
        self.run("build", *install, "--no-build-isolation", "--no-deps", "-e", ".")
        if self.cell.built_with:
            self.run("install", *install, "--no-deps", *self.cell.pins)

    def versions(self) -> dict[str, str]:
        code = (
            "import importlib.metadata as m, json, platform; found = {'python': platform.python_version()}\n"
            f"for name in {LIBRARIES}:\n    found[name] = m.version(name)\nprint(json.dumps(found))"
        )
        return json.loads(self.run("versions", str(self.python), "-c", code))


def run_cell(cell: Cell, uv: str, checks: Iterable[str] = CHECKS) -> dict[str, Any]:
    """Run one cell. A step that fails ends the installation; the checks run one and all."""
    start, outcome = time.monotonic(), {"versions": {}, "checks": {}, "failures": {}}
    with tempfile.TemporaryDirectory(prefix="versions-") as folder:
        environment = Environment(Path(folder), uv, cell)
        try:
            environment.install()
            outcome["versions"] = environment.versions()
        except (StepFailed, subprocess.TimeoutExpired) as error:
            return outcome | {"failures": {"install": [str(part) for part in error.args]}}
        for name in checks:
            try:
                outcome["checks"][name] = summary(environment.run(name, str(environment.python), *CHECKS[name]))
            except (StepFailed, subprocess.TimeoutExpired) as error:
                outcome["failures"][name] = [str(part) for part in error.args]
    return outcome | {"seconds": round(time.monotonic() - start)}


def summary(output: str) -> str:
    """Take the counts from pytest's last line; any other output's last line as it is."""
    last = output.strip().splitlines()[-1]
    counts = re.findall(r"\d+ (?:passed|skipped|xfailed)", last)
    return ", ".join(counts) or last


def table(results: dict[str, Any]) -> str:
    """Write the results as the table of the page, cells in the order of ``CELLS``."""
    libraries = ("python", "torch", "triton", "diffusers", "numpy")
    header = ["", "Python", "torch", "Triton", "diffusers", "NumPy", *COLUMNS]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for name in CELLS:
        if name in results:
            result = results[name]
            versions = [result["versions"].get(library, "") for library in libraries]
            checks = [result["checks"].get(check, "**failed**") for check in COLUMNS]
            lines.append(f"| {' | '.join([name, *versions, *checks])} |")
    return "\n".join(lines) + "\n"


def write_page() -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + table(json.loads(RESULTS.read_text())) + END + rest.partition(END)[2])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", metavar="CELL", help=f"all without any: {', '.join(CELLS)}")
    parser.add_argument("--checks", nargs="*", choices=CHECKS, help="run these and record nothing")
    parser.add_argument("--uv", default=shutil.which("uv"), help="the program uv")
    arguments = parser.parse_args()
    if arguments.uv is None:
        parser.error("uv was not found: pip install uv, or name it with --uv")
    if unknown := set(arguments.cells) - set(CELLS):
        parser.error(f"no such cell: {', '.join(sorted(unknown))}")
    failed = []
    for name in arguments.cells or CELLS:
        outcome = run_cell(CELLS[name], arguments.uv, arguments.checks or CHECKS)
        failed += [name] * bool(outcome["failures"])
        sys.stdout.write(f"{name}: {outcome['checks']} {outcome['failures'] or ''}\n")
        sys.stdout.flush()
        if not arguments.checks:
            results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            RESULTS.write_text(json.dumps(results | {name: outcome}, indent=1) + "\n")
            write_page()
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
