"""Builds where a tool is missing or wrong, in a copy of the sources."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD_TOOLS = ("setuptools", "pybind11", "cmake", "ninja")
LACKING = [name for name in BUILD_TOOLS if importlib.util.find_spec(name) is None]
# CMake also looks outside PATH.
NVCC_FOLDERS = ["/usr/local/cuda/bin", *([str(Path(nvcc).parent)] if (nvcc := shutil.which("nvcc")) else [])]
COMPILERS = ("c++", "cc", "g++", "gcc", "ld", "as", "ar", "ranlib")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the extension is built on Linux"),
    pytest.mark.skipif(bool(LACKING), reason=f"the build needs {', '.join(LACKING)}"),
]


@pytest.fixture
def source(tmp_path) -> Path:
    """Copy the sources that the build reads."""
    copy = tmp_path / "source"
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "_extension_missing.txt")
    for folder in ("csrc", "dimr", "dimr_kernels"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignore)
    for name in ("CMakeLists.txt", "LICENSE", "MANIFEST.in", "pyproject.toml", "setup.py", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture
def path_with_compiler_only(tmp_path) -> str:
    """Return a PATH without nvcc."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in (*COMPILERS, "sh", "uname"):
        found = shutil.which(name)
        if found is not None:
            (folder / name).symlink_to(found)
    if not any((folder / name).exists() for name in ("c++", "g++")):
        pytest.skip("no C++ compiler here")
    return str(folder)


def build(source: Path, path: str, hook: str = "build_wheel", **environment: str) -> subprocess.CompletedProcess[str]:
    """Call the build backend as pip does."""
    code = f"from setuptools import build_meta; print(build_meta.{hook}('dist'))"
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("CUDA", "CXX", "CMAKE", "DIMR_"))}
    environment = {**keep, "PATH": path, "CMAKE_ARGS": f"'-DCMAKE_IGNORE_PATH={';'.join(NVCC_FOLDERS)}'", **environment}
    (source / "dist").mkdir(exist_ok=True)
    return subprocess.run([sys.executable, "-c", code], cwd=source, env=environment, capture_output=True, text=True)


# An editable install of the project must not lend its library to the package under test.
REPORT = """
import runpy, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
runpy.run_module("dimr_kernels", run_name="__main__")
"""


def report_of(wheel: Path) -> str:
    """Return what ``python -m dimr_kernels`` prints for the wheel's contents."""
    folder = wheel.parent / "unpacked"
    zipfile.ZipFile(wheel).extractall(folder)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, "-c", REPORT], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def only_wheel(source: Path) -> Path:
    (wheel,) = (source / "dist").glob("*.whl")
    return wheel


def test_without_nvcc(source, path_with_compiler_only):
    done = build(source, path_with_compiler_only)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "installed without its CUDA operators: nvcc was not found" in done.stderr
    assert "Cost: on a GPU, pixel shuffles run as plain PyTorch" in done.stderr
    report = report_of(only_wheel(source))
    assert "CPU operators only" in report
    assert "nvcc was not found" in report
    assert "pixel_shuffle_add           cpp" in report


def test_without_compiler(source, tmp_path):
    (tmp_path / "empty").mkdir()
    done = build(source, str(tmp_path / "empty"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("installed without its compiled extension: no C++ compiler was found") == 1
    wheel = only_wheel(source)
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.endswith(".so")]
    report = report_of(wheel)
    assert "not available: no C++ compiler was found" in report
    assert "pixel_shuffle_add           eager" in report


def test_editable_install_deletes_the_old_library(source, tmp_path):
    (tmp_path / "empty").mkdir()
    old = source / "dimr_kernels" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    old.write_bytes(b"of an earlier build")
    done = build(source, str(tmp_path / "empty"), hook="build_editable")
    assert done.returncode == 0, done.stderr[-3000:]
    assert not old.exists()
    assert "no C++ compiler" in (source / "dimr_kernels" / "_extension_missing.txt").read_text()


def test_compile_error_is_an_error(source, path_with_compiler_only):
    header = source / "csrc" / "pixel_shuffle.h"
    header.write_text(header.read_text() + "\n#error broken on purpose\n")
    done = build(source, path_with_compiler_only, DIMR_KERNELS_CUDA="off")
    assert done.returncode != 0
    assert "broken on purpose" in done.stdout + done.stderr
    assert "building the extension failed" in done.stderr
    assert not list((source / "dist").glob("*.whl"))


@pytest.mark.parametrize(
    ("value", "message"),
    [("on", "DIMR_KERNELS_CUDA=on, but nvcc was not found"), ("yes", "must be auto, on or off, got 'yes'")],
)
def test_a_demand_that_cannot_be_met(value, message, source, path_with_compiler_only):
    done = build(source, path_with_compiler_only, DIMR_KERNELS_CUDA=value)
    assert done.returncode != 0
    assert message in " ".join((done.stdout + done.stderr).split())


def test_cuda_demanded_without_a_compiler(source, tmp_path):
    (tmp_path / "empty").mkdir()
    done = build(source, str(tmp_path / "empty"), DIMR_KERNELS_CUDA="on")
    assert done.returncode != 0
    assert "DIMR_KERNELS_CUDA=on, but no C++ compiler was found" in done.stderr


def test_old_setuptools_is_named(source):
    """Name setuptools of a new Python 3.11 environment as too old; its own message is about the license."""
    code = "import runpy, setuptools; setuptools.__version__ = '65.5.0'; runpy.run_path('setup.py')"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "needs setuptools 77 or newer, found 65.5.0: pip install --upgrade setuptools" in done.stderr
