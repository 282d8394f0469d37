"""The compiled extension without a GPU: the CUDA kernel's threads on the host, its offsets, its machine code."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import torch

import dimr_kernels as dk
from dimr_kernels import dispatch, environment
from dimr_kernels.dispatch import FUSED_FORMS, ExtensionStatus, extension_status
from dimr_kernels.ops.pixel_shuffle import shuffle_add_definition, shuffle_definition, unshuffle_definition
from tests.support import pixel_shuffle as compiled
from tests.support.operators import EXAMPLES

STATUS = extension_status()
needs_extension = pytest.mark.skipif(not STATUS.loaded, reason=f"compiled extension: {STATUS.reason}")
needs_cuda_code = pytest.mark.skipif(not STATUS.has_cuda, reason=f"no CUDA code: {STATUS.reason}")
# (B, C, H, W): multiples of 16 bytes in every direction; then odd sizes, which are moved by single elements.
ROUND, ODD = [(2, 8, 3, 8), (1, 24, 5, 16)], [(2, 3, 5, 7), (3, 1, 1, 5)]
FACTORS = (1, 2, 3, 4, 5)
# Layout -> factors that have a kernel with 16-byte accesses.
VECTORISED = {"nhwc": FACTORS, "nchw": (1, 2, 3, 4), "channels_last": (1, 2, 3)}


def images(shape, r, layout, dtype):
    B, C, H, W = shape
    x, y = torch.randn(B, C * r * r, H, W).to(dtype), torch.randn(B, C, H * r, W * r).to(dtype)
    if layout == "nhwc":
        return x.permute(0, 2, 3, 1).contiguous(), y.permute(0, 2, 3, 1).contiguous()
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    return x.contiguous(memory_format=memory_format), y.contiguous(memory_format=memory_format)


@needs_extension
@pytest.mark.parametrize("shape", ROUND + ODD, ids=str)
@pytest.mark.parametrize("layout", compiled.LAYOUTS)
@pytest.mark.parametrize("dtype", compiled.DTYPES, ids=str)
def test_cuda_threads_compute_what_eager_does(shape, layout, dtype):
    for r in FACTORS:
        x, y = images(shape, r, layout, dtype)
        assert torch.equal(compiled.run_on_host(x, y, r, layout), shuffle_add_definition(x, y, r, layout))
        assert torch.equal(compiled.run_on_host(x, None, r, layout), shuffle_definition(x, r, layout))
        assert torch.equal(compiled.run_on_host(y, None, r, layout, inverse=True), unshuffle_definition(y, r, layout))


@needs_extension
@pytest.mark.parametrize("layout", compiled.LAYOUTS)
def test_cuda_threads_on_misaligned_tensors(layout):
    x, y = images((2, 8, 3, 8), 2, layout, torch.float32)
    shifted = torch.empty(x.numel() + 1)[1:].as_strided(x.shape, x.stride(), 1).copy_(x)
    assert torch.equal(compiled.run_on_host(shifted, y, 2, layout), shuffle_add_definition(x, y, 2, layout))


@needs_extension
@pytest.mark.parametrize("layout", compiled.LAYOUTS)
@pytest.mark.parametrize("r", FACTORS)
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_element_is_touched_exactly_once(layout, r, aligned, dtype):
    for B, C, H, W in (*ROUND, *ODD):
        shape = compiled.image_shape(B, C, H, W, r, layout)
        launch = compiled.launch_geometry(shape, dtype, aligned)
        vector, planes, tiles = launch["vector"], launch["planes"], launch["tiles"]
        run = C * H * W if r == 1 and layout != "nhwc" else {"nhwc": r * C, "nchw": W, "channels_last": C}[layout]
        whole_runs = aligned and run * dtype.itemsize % 16 == 0 and r in VECTORISED[layout]
        assert vector == (16 // dtype.itemsize if whole_runs else 1)
        assert (launch["blocks"] - 1) * launch["threads"] < tiles <= launch["blocks"] * launch["threads"]
        dense, gathered = Counter(), Counter()
        for tile in range(tiles):
            start, runs = compiled.tile_offsets(shape, dtype, tile, aligned)
            assert len(runs) == planes
            assert all(offset % vector == 0 for offset in (start, *runs))
            dense.update(range(start, start + planes * vector))
            gathered.update(i for run in runs for i in range(run, run + vector))
        for side in (dense, gathered):
            assert len(side) == B * C * H * W * r * r
            assert set(side.values()) == {1}


@needs_extension
@pytest.mark.parametrize("layout", compiled.LAYOUTS)
def test_offsets_beyond_32_bits(layout):
    B, C, H, W, r = 40_000, 480, 16, 16, 2
    shape = compiled.image_shape(B, C, H, W, r, layout)
    launch = compiled.launch_geometry(shape, torch.bfloat16)
    numel = B * C * H * W * r * r
    last_dense, last_runs = compiled.tile_offsets(shape, torch.bfloat16, launch["tiles"] - 1)
    assert launch["wide"]
    assert last_dense == numel - launch["vector"] * launch["planes"]
    assert max(last_runs) == numel - launch["vector"]
    assert launch["blocks"] * launch["threads"] >= launch["tiles"]
    small = compiled.image_shape((2**31 - 1) // (C * H * W * r * r), C, H, W, r, layout)
    assert not compiled.launch_geometry(small, torch.bfloat16)["wide"]


@needs_extension
def test_channels_last_is_found_by_the_memory():
    x, y = images((2, 8, 3, 8), 2, "channels_last", torch.float32)
    with dk.use_backend("cuda"):
        out = dk.functional.pixel_shuffle_add(x, y, 2, layout="nchw")
    assert out.is_contiguous(memory_format=torch.channels_last)


def extension_file() -> Path:
    from dimr_kernels import _C

    return Path(_C.__file__)


def nvidia_tool(*arguments: str) -> str:
    triton = pytest.importorskip("triton")
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        pytest.skip("this Triton carries no cuobjdump")
    return subprocess.run([tool, *arguments, extension_file()], capture_output=True, text=True, check=True).stdout


@needs_cuda_code
def test_machine_code_for_every_architecture_and_later_ones():
    listed = nvidia_tool("-lelf", "-lptx")
    wanted = {"80", "86", "89", "90"}
    if tuple(map(int, extension_status().build["nvcc"].split(".")[:2])) >= (12, 8):
        wanted |= {"100", "120"}
    assert set(re.findall(r"sm_(\d+)\.cubin", listed)) >= wanted
    assert re.search(r"sm_90\.ptx", listed)


@needs_cuda_code
def test_nothing_spills():
    usage = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", nvidia_tool("-res-usage"))
    assert len(usage) > 100
    assert all(stack == local == "0" for _, stack, local in usage)
    assert max(int(registers) for registers, _, _ in usage) <= 128


@pytest.mark.slow
@needs_cuda_code
def test_machine_code_moves_16_bytes():
    """Check that kernels move 16 bytes at a time or, in the form for odd sizes, one element."""
    kernels = re.split(r"\n\s+Function : ", nvidia_tool("-sass"))[1:]
    wide = 0
    for kernel in kernels:
        loads = set(re.findall(r"\bLDG\.E\.?(128|U16|)", kernel))
        stores = set(re.findall(r"\bSTG\.E\.?(128|U16|)", kernel))
        assert loads == stores, kernel.partition("\n")[0]
        assert len(loads) == 1, kernel.partition("\n")[0]
        assert not re.search(r"\b(LDL|STL|LD\.E|ST\.E)\b", kernel)
        wide += loads == {"128"}
    assert wide == len(kernels) * 6 // 7


@needs_extension
@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed")
def test_needs_torch_by_name_and_no_other_version_of_it():
    dynamic = subprocess.run(["readelf", "-d", extension_file()], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"NEEDED.*\[(.*)\]", dynamic)
    assert {"libtorch.so", "libtorch_cpu.so"} <= set(needed)
    assert not [name for name in needed if re.search("c10|torch_python|cuda", name)]
    assert "RUNPATH" not in dynamic
    assert "RPATH" not in dynamic


def test_the_reason_it_did_not_load(tmp_path, monkeypatch):
    monkeypatch.setattr(dispatch, "MISSING_NOTE", tmp_path / "note.txt")
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    assert "not built" in dispatch._load_failure_reason(ImportError("x"))
    (tmp_path / "note.txt").write_text("no C++ compiler was found\n")
    assert dispatch._load_failure_reason(ImportError("x")) == "no C++ compiler was found"
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: "found")
    assert "does not load here (undefined symbol: y)" in dispatch._load_failure_reason(
        ImportError("undefined symbol: y")
    )


def test_the_package_works_without_it(monkeypatch):
    missing = ExtensionStatus(loaded=False, has_cuda=False, reason="no C++ compiler was found")
    monkeypatch.setattr(dispatch, "_load_extension", lambda: missing)
    x, y = torch.randn(1, 2, 2, 8), torch.randn(1, 4, 4, 2)
    assert torch.equal(dk.functional.pixel_shuffle_add(x, y, 2), shuffle_add_definition(x, y, 2, "nhwc"))
    with dk.use_backend("cuda"), pytest.raises(dk.BackendError, match="not available: no C\\+\\+ compiler was found"):
        dk.functional.pixel_shuffle_add(x, y, 2)
    text = environment.report()
    assert "extension    not available: no C++ compiler was found" in text
    assert f"Cost: {environment.COST_WITHOUT_EXTENSION}" in text


def test_the_report_says_what_each_operator_takes():
    text = environment.report()
    for operator, example in EXAMPLES.items():
        assert re.search(rf"^{operator} +\S+", text, flags=re.MULTILINE), operator
        if operator != "attention":
            assert FUSED_FORMS[operator].gpu == (example.fused,)
            assert FUSED_FORMS[operator].cpu == ("cpp", example.fused)
    assert torch.__version__ in text
    with dk.use_backend("eager"):
        assert environment.implementation_of("geglu", torch.device("cpu")) == ("eager", "it was asked for")
    if STATUS.loaded:
        assert environment.implementation_of("pixel_shuffle_add", torch.device("cpu")) == ("cpp", "")
