"""Build the extension ``dimr_kernels._C`` with CMake. Everything else about the project is in pyproject.toml.

Environment: DIMR_KERNELS_CUDA=auto|on|off, CUDA_HOME, CXX, CMAKE_ARGS. Without a C++ compiler the package is installed
as pure Python, without nvcc with CPU operators only; a compile error is an error.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
PACKAGE = "dimr_kernels"
MISSING_NOTE = "_extension_missing.txt"  # read by dimr_kernels/dispatch.py
COST_WITHOUT_EXTENSION = (
    "every operator on a CPU, and pixel shuffles on a GPU, run as plain PyTorch; everything else works, "
    "Triton kernels included"
)
COST_WITHOUT_CUDA = "on a GPU, pixel shuffles run as plain PyTorch; everything else works"
OLDEST_TORCH = (2, 10)
OLDEST_SETUPTOOLS = 77  # older ones refuse the license in pyproject.toml, with a message about its schema


def torch_include() -> Path | None:
    """Find the headers of a recent enough torch: of this environment, or of the one that an isolated build is for."""
    spec = importlib.util.find_spec("torch")
    folders = [str(Path(spec.origin).parents[1])] if spec is not None and spec.origin else []
    folders += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    for folder in folders:
        include = Path(folder, "torch", "include")
        version = include / "torch" / "headeronly" / "version.h"
        if version.is_file():
            numbers = re.findall(r"#define TORCH_VERSION_(?:MAJOR|MINOR) (\d+)", version.read_text())
            if tuple(map(int, numbers)) >= OLDEST_TORCH:
                return include
    return None


def compiler_missing_reason() -> str | None:
    """Name what this machine lacks to compile C++; None if nothing."""
    if sys.platform != "linux":
        return f"the extension is built on Linux only, this is {sys.platform}"
    named = shlex.split(os.environ.get("CXX", ""))
    if not any(shutil.which(name) for name in named[:1] or ("c++", "g++", "clang++")):
        return "no C++ compiler was found (install g++ or clang++, or set CXX)"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return f"{sysconfig.get_path('include')}/Python.h was not found (install Python's headers, e.g. python3-dev)"
    return None


def announce(what: str, reason: str, cost: str) -> None:
    """Tell whoever installs, in one line. Recent versions of pip show a build's warnings, and nothing else of it."""
    line = f"{PACKAGE}: {what}: {reason}. Cost: {cost}. (python -m {PACKAGE} says this again.)"
    warnings.warn(line, stacklevel=2)
    if not hasattr(sys.modules["__main__"], "warnings"):
        # An older pip, whose script in this process does not collect warnings: tell the terminal, if there is one.
        with contextlib.suppress(OSError), open("/dev/tty", "w") as terminal:
            terminal.write(f"\n{line}\n")


def tool(name: str) -> str | None:
    """Find a program of this environment, which need not be on PATH when it has not been activated."""
    return shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


class CMakeBuild(build_ext):
    def run(self) -> None:
        places = [Path(self.build_lib, PACKAGE)] + ([ROOT / PACKAGE] if self.inplace else [])
        library = Path(self.get_ext_filename(f"{PACKAGE}._C")).name
        for place in places:
            for stale in (library, MISSING_NOTE):
                (place / stale).unlink(missing_ok=True)
        reason = compiler_missing_reason()
        if reason is None:
            super().run()
            return
        if os.environ.get("DIMR_KERNELS_CUDA") == "on":
            raise SystemExit(f"{PACKAGE}: DIMR_KERNELS_CUDA=on, but {reason}")
        self.extensions = []
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
            (place / MISSING_NOTE).write_text(reason + "\n")
        announce("installed without its compiled extension", reason, COST_WITHOUT_EXTENSION)

    def build_extension(self, ext: Extension) -> None:
        cmake, ninja, include = tool("cmake"), tool("ninja"), torch_include()
        needed = {"cmake": cmake, "pybind11": importlib.util.find_spec("pybind11"), "torch>=2.10": include}
        lacking = [name for name, found in needed.items() if not found]
        if lacking:
            raise SystemExit(
                f"{PACKAGE}: the build needs {', '.join(lacking)}: install it, or leave out --no-build-isolation"
            )
        build_dir = Path(self.build_temp).resolve()
        options = {
            "Python_EXECUTABLE": sys.executable,
            "TORCH_INCLUDE_DIR": include,
            "DIMR_OUTPUT_DIR": Path(self.get_ext_fullpath(ext.name)).resolve().parent,
            "DIMR_KERNELS_CUDA": os.environ.get("DIMR_KERNELS_CUDA", "auto"),
        }
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        more = shlex.split(os.environ.get("CMAKE_ARGS", ""))
        defines = [f"-D{name}={value}" for name, value in options.items()]
        run([cmake, "-S", str(ROOT), "-B", str(build_dir), *generator, *defines, *more])
        run([cmake, "--build", str(build_dir), "--parallel", str(os.cpu_count() or 1)])
        without_cuda = (build_dir / "cuda_missing.txt").read_text()
        if without_cuda:
            announce("installed without its CUDA operators", without_cuda, COST_WITHOUT_CUDA)


def run(command: list[str]) -> None:
    code = subprocess.run(command, check=False).returncode
    if code:
        raise SystemExit(f"{PACKAGE}: building the extension failed, see above ({shlex.join(command)} returned {code})")


if int(setuptools.__version__.partition(".")[0]) < OLDEST_SETUPTOOLS:
    raise SystemExit(
        f"{PACKAGE}: the build needs setuptools {OLDEST_SETUPTOOLS} or newer, found {setuptools.__version__}: "
        f"pip install --upgrade setuptools, or leave out --no-build-isolation"
    )

# An installed torch provides the headers. Only without one is torch downloaded into the build environment.
needs_torch = compiler_missing_reason() is None and torch_include() is None

setup(
    ext_modules=[Extension(f"{PACKAGE}._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
    setup_requires=["torch>=2.10"] if needs_torch else [],
)
