"""Wheel and source distribution: complete, without extra files, and usable without a checkout."""

from __future__ import annotations

import importlib.util
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD_TOOLS = ("build", "setuptools", "pybind11", "cmake", "ninja")
LACKING = [name for name in BUILD_TOOLS if importlib.util.find_spec(name) is None]
LIBRARY = f"dimr_kernels/_C{sysconfig.get_config_var('EXT_SUFFIX')}"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the extension is built on Linux"),
    pytest.mark.skipif(bool(LACKING), reason=f"the build needs {', '.join(LACKING)}"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler here"),
]


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """Build a source distribution of this tree, and a wheel from it."""
    source = tmp_path_factory.mktemp("build") / "source"
    leave_out = shutil.ignore_patterns(".*", "*.so", "*.egg-info", "__pycache__", "build", "dist", "demo*_output")
    shutil.copytree(ROOT, source, ignore=leave_out)
    # Without CUDA: that takes a minute, and tests/test_build.py has it.
    environment = {**os.environ, "DIMR_KERNELS_CUDA": "off"}
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist"]
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return source / "dist"


def only(dist: Path, pattern: str) -> Path:
    (found,) = dist.glob(pattern)
    return found


def modules_in(source: Path) -> set[str]:
    folders = (source / "dimr", source / "dimr_kernels")
    return {str(path.relative_to(source)) for folder in folders for path in folder.rglob("*.py")}


def test_contents_of_the_wheel(dist):
    source = dist.parent
    names = set(zipfile.ZipFile(only(dist, "*.whl")).namelist())
    recipes = {f"dimr/recipes/{path.name}" for path in (source / "dimr" / "recipes").glob("*.toml")}
    assert len(recipes) >= 6
    wanted = modules_in(source) | recipes
    wanted |= {LIBRARY, "dimr/py.typed", "dimr_kernels/py.typed"}
    metadata = {name for name in names if ".dist-info/" in name}
    assert names - metadata == wanted
    assert any(name.endswith("/licenses/LICENSE") for name in metadata)


def test_contents_of_the_source_distribution(dist):
    source = dist.parent
    with tarfile.open(only(dist, "*.tar.gz")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {f"csrc/{path.name}" for path in (source / "csrc").iterdir()}
    project = {"CMakeLists.txt", "CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", "pyproject.toml", "setup.py"}
    assert sources | project | modules_in(source) <= names
    assert {name.partition("/")[0] for name in names}.isdisjoint({"tests", "benchmarks", "docs", "build"})


@pytest.fixture(scope="module")
def environment(dist, tmp_path_factory) -> Path:
    """Make a virtual environment with the wheel and the current environment's libraries, but no editable install."""
    folder = tmp_path_factory.mktemp("wheel") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # Folders that a .pth file names are searched; .pth files in them, such as an editable install's, are not read.
    (packages / "libraries.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    python = folder / "bin" / "python"
    install = ["install", "--quiet", "--no-index", "--no-deps", "--force-reinstall", only(dist, "*.whl")]
    done = subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def run(environment: Path, where: Path, program: str, *arguments: str) -> str:
    """Run a program of the environment in another folder and return its output."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "DIMR_", "TRITON"))}
    done = subprocess.run(
        [environment / "bin" / program, *arguments], cwd=where, env=clean, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


OPERATORS = """
import sys, torch, dimr, dimr_kernels as dk
for package in (dimr, dk):
    assert package.__file__.startswith(sys.prefix), package.__file__
x, y = torch.randn(1, 2, 2, 8), torch.randn(1, 4, 4, 2)
with dk.use_backend("cuda"):  # the compiled extension's form for a CPU
    out = dk.functional.pixel_shuffle_add(x, y, 2)
with dk.use_backend("eager"):
    assert torch.equal(out, dk.functional.pixel_shuffle_add(x, y, 2))
print(tuple(dk.TDLayerNorm(8)(x, 0.5).shape))
"""


def test_operators_work_outside_the_checkout(environment, tmp_path):
    assert run(environment, tmp_path, "python", "-c", OPERATORS) == "(1, 2, 2, 8)\n"


def test_report_outside_the_checkout(environment, tmp_path):
    report = run(environment, tmp_path, "python", "-m", "dimr_kernels")
    assert "CPU operators only" in report
    assert "pixel_shuffle_add           cpp" in report


def test_commands_outside_the_checkout(environment, tmp_path):
    assert "train" in run(environment, tmp_path, "dimr", "--help")
    assert "132.9" in run(environment, tmp_path, "dimr", "info", "dimr-m-3r")
