from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import dimr_kernels as dk
from dimr_kernels import dispatch
from dimr_kernels.dispatch import SMALLEST_FOR_CPP, TRITON_INTERPRETS, choose, constant_when_traced, extension_status

ROOT = Path(__file__).parents[2]


def test_default_is_auto():
    assert dk.current_backend() == "auto"


def test_blocks_nest_and_end():
    with dk.use_backend("eager"):
        with dk.use_backend("triton"):
            assert dk.current_backend() == "triton"
        assert dk.current_backend() == "eager"
    assert dk.current_backend() == "auto"


def test_ends_after_an_error():
    with pytest.raises(KeyError), dk.use_backend("eager"):
        raise KeyError
    assert dk.current_backend() == "auto"


def test_unknown_name():
    with pytest.raises(ValueError, match="'cudnn'"):
        dk.use_backend("cudnn")


def test_threads_do_not_see_each_other():
    seen = []
    with dk.use_backend("eager"):
        thread = threading.Thread(target=lambda: seen.append(dk.current_backend()))
        thread.start()
        thread.join()
    assert seen == ["auto"]


def test_explicit_choice_without_such_a_form_raises():
    with dk.use_backend("cuda"), pytest.raises(dk.BackendError, match=r"geglu.*'cuda'.*'cpp', 'triton'"):
        dk.functional.geglu(torch.zeros(2, 4))


def test_float64_is_never_computed_in_float32():
    h = torch.randn(2, 4, dtype=torch.float64)
    assert dk.functional.geglu(h).dtype == torch.float64
    with dk.use_backend("triton"), pytest.raises(dk.BackendError, match="float64"):
        dk.functional.geglu(h)


needs_extension = pytest.mark.skipif(not extension_status().loaded, reason="the extension is missing")


@needs_extension
def test_auto_on_a_cpu_takes_cpp_where_it_wins():
    small, large = torch.zeros(SMALLEST_FOR_CPP["geglu"].eager - 1), torch.zeros(SMALLEST_FOR_CPP["geglu"].eager)
    assert (choose("geglu", small), choose("geglu", large)) == ("eager", "cpp")
    assert choose("geglu", large.double()) == "eager"
    assert choose("td_layer_norm", small[:0]) == choose("inference.td_norm", small) == "cpp"
    with dk.use_backend("cpp"):
        assert choose("geglu", small) == "cpp"


def test_auto_without_the_extension_is_eager(monkeypatch):
    missing = dispatch.ExtensionStatus(loaded=False, has_cuda=False, reason="no compiler")
    monkeypatch.setattr(dispatch, "_load_extension", lambda: missing)
    assert {choose(operator, torch.zeros(2**20)) for operator in dispatch.FUSED_FORMS} == {"eager"}
    with dk.use_backend("cpp"), pytest.raises(dk.BackendError, match=r"'cpp'.*cannot run.*no compiler"):
        dk.functional.geglu(torch.zeros(2, 4))


@needs_extension
def test_cuda_on_a_cpu_is_cpp_for_the_pixel_shuffles_alone():
    low, high = torch.randn(1, 2, 2, 8), torch.randn(1, 4, 4, 2)
    with dk.use_backend("cpp"):
        expected = dk.functional.pixel_shuffle_add(low, high, 2)
    with dk.use_backend("cuda"):
        assert torch.equal(dk.functional.pixel_shuffle_add(low, high, 2), expected)


def test_cpp_takes_cpu_tensors():
    with dk.use_backend("cpp"), pytest.raises(dk.BackendError, match=r"geglu.*'cpp'"):
        dk.functional.geglu(torch.zeros(2, 4, device="meta"))


@needs_extension
@pytest.mark.parametrize(
    ("operator", "rows", "compiled"),
    [
        ("td_layer_norm", 6, "eager"),
        ("td_layer_norm", SMALLEST_FOR_CPP["td_layer_norm"].compiled // 8, "cpp"),
        ("depthwise_conv2d", 16, "cpp"),
    ],
)
def test_auto_under_compile(operator, rows, compiled):
    """Small norms are left to Inductor, which fuses them with what is around; it is slow at convolutions."""
    chosen = []

    def record(graph, inputs):
        chosen.append("cpp" if "_cpp" in str(graph.graph) else "eager")
        return graph

    one, x = torch.ones(8), torch.randn(2, rows // 2, 8)
    if operator == "td_layer_norm":
        function = lambda x: dk.functional.td_layer_norm(x, 0.5, *[one] * 8)  # noqa: E731
    else:
        function, x = lambda x: dk.functional.depthwise_conv2d(x, one.expand(9, 8).T.reshape(8, 1, 3, 3)), x[:, None]
    torch.testing.assert_close(torch.compile(function, backend=record, fullgraph=True)(x), function(x))
    assert chosen == [compiled]


@pytest.mark.parametrize("strict", [False, True])
def test_an_export_is_told_from_a_compilation(strict):
    class Module(torch.nn.Module):
        def forward(self, x):
            return x + 1 if dispatch.is_exporting() else x - 1

    zeros = torch.zeros(2)
    compiled = torch.compile(Module(), backend="eager", fullgraph=True)
    assert compiled(zeros).tolist() == [-1, -1]
    assert torch.export.export(Module(), (zeros,), strict=strict).module()(zeros).tolist() == [1, 1]
    assert Module()(zeros).tolist() == [-1, -1]


@pytest.mark.skipif(not TRITON_INTERPRETS, reason="needs a process that interprets Triton on CPU tensors")
def test_auto_never_takes_the_interpreter():
    from unittest import mock

    with mock.patch("dimr_kernels.ops.geglu_triton.forward", side_effect=AssertionError("interpreted")):
        dk.functional.geglu(torch.zeros(2, 4))


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )


def test_environment_variable():
    code = "import dimr_kernels as dk; print(dk.current_backend())"
    assert run_python(code, DIMR_KERNELS_BACKEND="eager").stdout.strip() == "eager"
    bad = run_python(code, DIMR_KERNELS_BACKEND="fast")
    assert bad.returncode != 0
    assert "DIMR_KERNELS_BACKEND" in bad.stderr
    assert "'fast'" in bad.stderr


def test_cpu_tensors_without_the_interpreter():
    code = "import torch, dimr_kernels as dk\nwith dk.use_backend('triton'): dk.functional.geglu(torch.zeros(2, 4))"
    done = run_python(code, TRITON_INTERPRET="0")
    assert "BackendError" in done.stderr
    assert "CUDA tensors" in done.stderr


def test_import_needs_torch_alone():
    code = (
        "import sys\n"
        "for name in ('triton', 'flash_attn', 'diffusers', 'safetensors', 'tqdm', 'numpy.testing'):\n"
        "    sys.modules[name] = None\n"
        "import dimr_kernels, torch\n"
        "dimr_kernels.functional.geglu(torch.zeros(2, 4))"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_poison_is_in_force():
    assert torch.isnan(torch.empty(16)).all()
    assert torch.isnan(torch.randn(3).new_empty(5)).all()


def test_the_mark_is_torchs_own():
    ours, torchs = (mark(lambda: 0) for mark in (constant_when_traced, torch.compiler.assume_constant_result))
    assert vars(ours) == vars(torchs) != {}


def test_importing_the_package_imports_no_compiler_and_no_network_library():
    unwanted = ("torch._dynamo", "timm", "diffusers", "torchvision")
    code = f"import sys, dimr_kernels; print([name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
