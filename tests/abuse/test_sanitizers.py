"""C++ operators under sanitizers, Triton kernels with every access checked, and the commands for a GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import dimr_kernels as dk
from benchmarks.machine_code.compile import CASES
from benchmarks.on_gpu import all_steps
from tests.support.parity import results_of

from .every_kernel import CALLS
from .interpreter import OutsideMemory, guarded_memory

ROOT = Path(__file__).parents[2]
CHECKS = Path(__file__).parent / "native" / "pixel_shuffle_checks.cpp"
KERNEL_CHECKS = CHECKS.with_name("cpu_kernel_checks.cpp")
AVX2 = ("-mavx2", "-mfma", "-mf16c")  # as in CMakeLists.txt
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
COMPILER = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++", "clang++"))), None)
NO_GPU = not torch.cuda.is_available()


def compiler_with(folder: Path, sanitizers: str, *options: str) -> list[str]:
    """Return the command of the compiler with these sanitizers, or skip the test where they do not work."""
    if COMPILER is None:
        pytest.skip("no C++ compiler was found")
    command = [COMPILER, "-std=c++17", "-O0", "-pthread", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    command += options
    trial, program = folder / "trial.cpp", folder / "trial"
    trial.write_text("int main() { return 0; }\n")
    tried = subprocess.run([*command, str(trial), "-o", str(program)], capture_output=True, text=True)
    if tried.returncode or subprocess.run([program], capture_output=True).returncode:
        pytest.skip(f"{COMPILER} has no -fsanitize={sanitizers} here: {tried.stderr[-200:]}")
    return command


def compile_program(command: list[str], folder: Path, sources: list[Path]) -> Path:
    """Compile the sources, two at a time, and link them."""
    folder.mkdir(exist_ok=True)

    def compile_one(source: Path) -> str:
        made = folder / f"{source.stem}.o"
        done = subprocess.run([*command, "-c", str(source), "-o", str(made)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return str(made)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    program = folder / "checks"
    subprocess.run([*command, *objects, "-o", str(program)], check=True, capture_output=True, text=True)
    return program


def compile_checks(folder: Path, sanitizers: str, sources: Path = ROOT / "csrc") -> Path:
    """Compile the checks of the pixel shuffles."""
    headers = Path(torch.__file__).parent / "include"
    options = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", str(headers), "-I", str(sources)]
    return compile_program(compiler_with(folder, sanitizers, *options), folder / "made", [CHECKS])


def compile_kernel_checks(
    folder: Path, sanitizers: str, flags: tuple[str, ...] = (), sources: Path = ROOT / "csrc"
) -> Path:
    """Compile the checks of the other CPU operators, with the loops that they run."""
    command = compiler_with(folder, sanitizers, "-DDIMR_SET=baseline", "-I", str(sources), *flags)
    loops = sorted(path for path in sources.glob("*_cpu.cpp") if path.name != "pixel_shuffle_cpu.cpp")
    return compile_program(command, folder / "made", [KERNEL_CHECKS, *loops])


def run_checks(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Memory that is still allocated at exit is not an error here.
    settings = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    return subprocess.run([program, *arguments], capture_output=True, text=True, env=os.environ | settings)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_the_cpp_operators_are_clean(sanitizers, tmp_path):
    program = compile_checks(tmp_path, sanitizers)
    for arguments in ((), ("huge",)) if sanitizers != "thread" else ((),):
        done = run_checks(program, *arguments)
        assert (done.returncode, done.stdout) == (0, "clean\n"), done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("pixel_shuffle.h", "if (index >= static_cast<Index>(map.tiles)) return;", "if (index > map.tiles) return;"),
        ("cpu_loops.h", "for (; i + line <= n; i += line) {", "for (; i + line <= n + 1; i += line) {"),
    ],
)
def test_an_access_one_too_far_is_found(file, right, wrong, tmp_path):
    sources = shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    text = (sources / file).read_text()
    assert right in text
    (sources / file).write_text(text.replace(right, wrong))
    done = run_checks(compile_checks(tmp_path, "address,undefined", sources))
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr


def flags_of(capability: str) -> tuple[str, ...]:
    from dimr_kernels import _C

    if capability not in _C.cpu_capabilities():
        pytest.skip(f"this CPU or this build has no {capability}")
    return {"baseline": (), "avx2": AVX2, "avx512": AVX512}[capability]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sanitizers", "capability"),
    [("address,undefined", "baseline"), ("address,undefined", "avx512"), ("thread", "baseline")],
)
def test_the_cpu_kernels_are_clean(sanitizers, capability, tmp_path):
    done = run_checks(compile_kernel_checks(tmp_path, sanitizers, flags_of(capability)))
    assert (done.returncode, done.stdout) == (0, "clean\n"), done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sanitizers", "file", "right", "wrong", "said"),
    [
        (
            "address,undefined",
            "vec.h",
            "if (i < n) f(i, Part{static_cast<int>(n - i)});\n}",
            "if (i < n) f(i, Whole{});\n}",
            "AddressSanitizer",
        ),
        (
            "thread",
            "td_norm_cpu.cpp",
            "task.stats[unit] = task.rms",
            "task.stats[0] = task.stats[unit] = task.rms",
            "ThreadSanitizer: data race",
        ),
    ],
)
def test_a_mistake_in_the_cpu_kernels_is_found(sanitizers, file, right, wrong, said, tmp_path):
    sources = shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    text = (sources / file).read_text()
    assert text.count(right) == 1
    (sources / file).write_text(text.replace(right, wrong))
    done = run_checks(compile_kernel_checks(tmp_path, sanitizers, (), sources))
    assert done.returncode != 0
    assert said in done.stderr


def kernels_of_the_library() -> set[str]:
    return {case.kernel.__name__ for cases in CASES.values() for case in cases()}


def run_every_call() -> None:
    for function, make_inputs, backend in CALLS.values():
        results_of(function, make_inputs(torch.device("cuda" if torch.cuda.is_available() else "cpu")), backend)


@pytest.mark.skipif(not NO_GPU, reason="the interpreter does this where there is no GPU")
def test_triton_kernels_stay_inside_their_tensors(monkeypatch):
    with guarded_memory(lambda owner, name, value: monkeypatch.setattr(owner, name, value)) as launched:
        run_every_call()
    assert set(launched) == kernels_of_the_library(), "every_kernel.py must call every kernel"


@pytest.mark.skipif(not NO_GPU, reason="the interpreter does this where there is no GPU")
def test_the_guard_sees_a_missing_mask(monkeypatch):
    from dimr_kernels.ops import geglu_triton as kernels

    h = torch.randn(3, 10)
    launch = kernels._launch(torch.Size((9, 5)), ((10, 1), (10, 1)), "none")  # for 9 rows, called with 3
    with (
        guarded_memory(lambda owner, name, value: monkeypatch.setattr(owner, name, value)),
        pytest.raises(Exception, match=OutsideMemory.__name__),
        dk.use_backend("triton"),
    ):
        launch(h[:, :5], h[:, 5:], torch.empty(9, 5))


def test_a_call_on_a_gpu_checks_every_kernel_with_every_tool():
    steps = {step.name: step for step in all_steps(Path("out"))}
    for tool in ("memcheck", "racecheck", "synccheck", "initcheck"):
        assert steps[tool].command[:3] == ("compute-sanitizer", "--tool", tool)
        assert steps[tool].command[-1] == "tests.abuse.every_kernel"
        assert steps[tool].environment == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
