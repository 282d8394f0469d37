"""Kernels that do what they must not, each found, with what is needed to find the place."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

from dimr_kernels import functional as F
from dimr_kernels import use_backend
from tests.support.operators import EXAMPLES
from tests.support.parity import results_of

from .project import operators_on_compiled_kernels
from .ptx.faults import Fault, Kind
from .ptx.triton_driver import Executor, compiled_kernels
from .raw import execute

triton = pytest.importorskip("triton")
tl = triton.language

NORM = "_td_norm_fwd_kernel"
PRODUCT = "_geglu_linear_fwd_kernel"
Edit = Callable[[str], str]


@triton.jit
def same_place_kernel(x_ptr, out_ptr):
    tl.store(out_ptr, tl.load(x_ptr + tl.program_id(0)))


@triton.jit
def neighbour_kernel(x_ptr, N, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + (at + BLOCK) % N)
    tl.store(x_ptr + at, x)


@triton.jit
def copy_kernel(x_ptr, out_ptr, N, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + at, tl.load(x_ptr + at, mask=at < N, other=0.0), mask=at < N)


@torch.no_grad()
def run_norm() -> None:
    torch.manual_seed(0)
    names = ["p1", "p2", "p3", "p4"]
    names += [f"{kind}_gate_{part}" for kind in ("scale", "shift") for part in ("weight", "offset")]
    F.td_layer_norm(torch.randn(2, 9, 480).bfloat16(), torch.rand(2), **{name: torch.randn(480) for name in names})


@torch.no_grad()
def run_product() -> None:
    torch.manual_seed(0)
    F.geglu_linear(torch.randn(5, 320).bfloat16(), torch.randn(32, 320).bfloat16(), form="one_kernel")


def texts_of(call: Callable[[], object], architecture: int = 80) -> dict[str, str]:
    """The PTX of the last launch of each kernel."""
    with operators_on_compiled_kernels(architecture) as executor, use_backend("triton"):
        call()
    return executor.texts


def run_changed(text: str, changed: str, call: Callable[[], object], architecture: int = 80) -> None:
    assert changed != text, "the change found nothing to change"
    edit = lambda given: changed if given == text else given  # noqa: E731
    with operators_on_compiled_kernels(architecture, edit=edit), use_backend("triton"):
        call()


def fault_of(kernel: str, call: Callable[[], object], edit: Edit, architecture: int = 80) -> Fault:
    """Return what is found when this kernel's PTX is changed."""
    text = texts_of(call, architecture)[kernel]
    with pytest.raises(Fault) as caught:
        run_changed(text, edit(text), call, architecture)
    return caught.value


def without(pattern: str, number: int) -> Edit:
    """Take out one of the statements that match."""

    def edit(text: str) -> str:
        found = list(re.finditer(rf"(@!?%p\d+ )?{pattern}", text))[number]
        return text[: found.start()] + text[found.end() :]

    return edit


def count(pattern: str, text: str) -> int:
    return len(re.findall(pattern, text))


BARRIER, WAIT = r"bar\.sync \t0;", r"cp\.async\.wait_group \t\d+;"


def test_every_barrier_of_the_norm_is_needed() -> None:
    barriers = count(BARRIER, texts_of(run_norm)[NORM])
    assert barriers > 2
    for number in range(barriers):
        assert fault_of(NORM, run_norm, without(BARRIER, number)).kind in (Kind.RACE, Kind.UNINITIALISED), number


@pytest.mark.parametrize("architecture", [80, 90])
def test_waits_and_barriers_of_the_product(architecture: int) -> None:
    """Some stand where nothing was copied yet, and may be left out."""
    text = texts_of(run_product, architecture)[PRODUCT]
    for pattern, kind in ((WAIT, Kind.UNFINISHED_COPY), (BARRIER, Kind.RACE)):
        found = [kind_without(pattern, number, text, architecture) for number in range(count(pattern, text))]
        assert found.count(kind) >= 2
        assert set(found) <= {kind, None}


def kind_without(pattern: str, number: int, text: str, architecture: int) -> Kind | None:
    try:
        run_changed(text, without(pattern, number)(text), run_product, architecture)
    except Fault as fault:
        return fault.kind
    return None


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [
        (r"wgmma\.wait_group\.sync\.aligned 1;", Kind.UNFINISHED_PRODUCT),
        (r"wgmma\.wait_group\.sync\.aligned 0;", Kind.UNFINISHED_PRODUCT),
        (r"wgmma\.fence\.sync\.aligned;", Kind.MISSING_FENCE),
    ],
)
def test_waits_and_fences_of_hoppers_product(pattern: str, kind: Kind) -> None:
    assert fault_of(PRODUCT, run_product, without(pattern, 0), 90).kind == kind


@pytest.mark.parametrize("access", ["ld", "st"])
def test_a_dropped_mask(access: str) -> None:
    x, out = torch.randn(100), torch.empty(100)
    unmasked = lambda text: re.sub(rf"@%p\d+ ({access}\.global)", r"\1", text)  # noqa: E731
    with compiled_kernels(edit=unmasked), pytest.raises(Fault) as caught:
        copy_kernel[(1,)](x, out, 100, BLOCK=128)
    assert caught.value.kind == Kind.OUT_OF_BOUNDS
    name = "x_ptr" if access == "ld" else "out_ptr"
    assert re.search(rf"\d+ bytes at byte 400 of {name}, which has 400", str(caught.value))


@pytest.mark.parametrize(("shift", "kind"), [(2, Kind.MISALIGNED), (16, Kind.OUT_OF_BOUNDS), (-16, Kind.OUT_OF_BOUNDS)])
def test_a_shifted_pointer(shift: int, kind: Kind) -> None:
    pattern = rf"(ld\.param\.b64 \t(%rd\d+), \[{NORM}_param_0\];)"
    assert fault_of(NORM, run_norm, lambda text: re.sub(pattern, rf"\1 add.s64 \2, \2, {shift};", text)).kind == kind


def test_a_shared_store_out_of_bounds() -> None:
    edit = lambda text: re.sub(r"(st\.shared\S+\s+\[\s*%r\d+)( \+ 0)?\s*\]", r"\1+65536]", text, count=1)  # noqa: E731
    assert fault_of(NORM, run_norm, edit).kind == Kind.OUT_OF_BOUNDS


def test_shared_memory_that_nobody_wrote() -> None:
    fault = fault_of(NORM, run_norm, lambda text: re.sub(r"(@!?%p\d+ )?st\.shared[^;]*;", "", text))
    assert fault.kind == Kind.UNINITIALISED


def launch(kernel: object, grid: int, *arguments: object, **constants: int) -> Executor:
    with compiled_kernels() as executor:
        kernel[(grid,)](*arguments, **constants)  # type: ignore[index]
    return executor


def test_blocks_that_write_one_place() -> None:
    with pytest.raises(Fault, match="a block writes what block") as caught:
        launch(same_place_kernel, 3, torch.randn(3), torch.zeros(1))
    assert caught.value.kind == Kind.BLOCK_RACE


def test_a_block_that_reads_what_another_writes() -> None:
    with pytest.raises(Fault, match=r"a block (reads|writes) what (block|several)") as caught:
        launch(neighbour_kernel, 4, torch.randn(256), 256, BLOCK=64)
    assert caught.value.kind == Kind.BLOCK_RACE


def test_between_the_elements_of_a_strided_tensor() -> None:
    wide = torch.zeros(64, 8)
    with pytest.raises(Fault, match="between its elements"):
        launch(copy_kernel, 1, wide[:, 0], torch.empty(64), 64, BLOCK=64)


def test_views_of_one_tensor_are_told_apart() -> None:
    both = torch.randn(128)
    launch(copy_kernel, 1, both[:64], both[64:], 64, BLOCK=64)
    assert torch.equal(both[:64], both[64:])


def test_a_message_names_kernel_lines_threads_and_address() -> None:
    with pytest.raises(Fault) as caught:
        launch(copy_kernel, 2, torch.randn(60), torch.empty(100), 100, BLOCK=64)
    message = str(caught.value)
    line = copy_kernel.fn.__code__.co_firstlineno + 3
    assert "kernel copy_kernel, PTX line " in message
    assert re.search(r": (@%p\d+ )?ld\.global", message)
    assert f"source test_faults.py:{line}" in message
    assert re.search(r"thread \d+ of block 0", message)
    assert re.search(r"address 0x[0-9a-f]+$", message)


def raw_fault(body: str, *tensors: np.ndarray, **settings: int) -> Fault:
    with pytest.raises(Fault) as caught:
        execute(body, *tensors, **settings)
    return caught.value


def test_a_barrier_that_a_part_of_the_block_reaches() -> None:
    fault = raw_fault(
        """
    mov.u32 %r0, %tid.x;
    setp.lt.u32 %p1, %r0, 40;
    @%p1 bar.sync 0;
""",
        threads=64,
    )
    assert fault.kind == Kind.DIVERGENT_BARRIER
    assert "source raw.py:7" in str(fault)
    assert "thread 0 of block 0 and 39 more" in str(fault)


def test_a_barrier_after_some_threads_returned() -> None:
    fault = raw_fault(
        """
    mov.u32 %r0, %tid.x;
    setp.lt.u32 %p1, %r0, 32;
    @%p1 ret;
    bar.sync 0;
""",
        threads=64,
    )
    assert fault.kind == Kind.DIVERGENT_BARRIER


def test_an_exchange_without_half_of_the_warp() -> None:
    fault = raw_fault(
        """
    mov.u32 %r0, %tid.x;
    setp.lt.u32 %p1, %r0, 16;
    @%p1 shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;
"""
    )
    assert fault.kind == Kind.DIVERGENT_WARP


EXCHANGE = """
    mov.u32 %r0, %tid.x;
    mov.b32 %r1, global_smem;
    shl.b32 %r2, %r0, 2;
    add.s32 %r3, %r1, %r2;
    st.shared.b32 [%r3], %r0;
    {wait}
    xor.b32 %r4, %r2, {distance};
    add.s32 %r4, %r1, %r4;
    ld.shared.b32 %r5, [%r4];
"""


@pytest.mark.parametrize(
    ("wait", "distance", "races"),
    [
        ("", 0, False),  # each thread reads its own
        ("", 4, True),
        ("bar.warp.sync -1;", 4, False),
        ("bar.warp.sync -1;", 128, True),  # another warp's
        ("bar.sync 0;", 128, False),
    ],
)
def test_a_race_needs_the_right_barrier(wait: str, distance: int, races: bool) -> None:
    body = EXCHANGE.format(wait=wait, distance=distance)
    if races:
        fault = raw_fault(body, threads=64, shared_bytes=256)
        assert fault.kind == Kind.RACE
        assert re.search(r"reads what thread \d+ wrote, with no barrier between", str(fault))
    else:
        execute(body, threads=64, shared_bytes=256)


def test_overwriting_what_another_thread_read() -> None:
    body = EXCHANGE.format(wait="bar.sync 0;", distance=4) + "    st.shared.b32 [%r3], %r5;\n"
    assert "overwrites what thread" in str(raw_fault(body, shared_bytes=128))


def test_threads_that_store_different_values_at_once() -> None:
    body = """
    mov.u32 %r0, %tid.x;
    mov.b32 %r1, global_smem;
    cvt.rn.f32.u32 %r2, %r0;
    st.shared.b32 [%r1], %r2;
"""
    assert "store different values at once" in str(raw_fault(body, shared_bytes=4))
    same = body.replace("%tid.x", "%ntid.x")
    execute(same, shared_bytes=4)
    out = np.zeros(1, np.uint32)
    to_global = "    mov.u32 %r0, %tid.x;\n    st.global.b32 [%rd0], %r0;\n"
    assert raw_fault(to_global, out).kind == Kind.RACE


COPY = """
    mov.u32 %r0, %tid.x;
    mov.b32 %r1, global_smem;
    shl.b32 %r2, %r0, 4;
    add.s32 %r3, %r1, %r2;
    mul.wide.u32 %rd5, %r0, 16;
    add.s64 %rd6, %rd0, %rd5;
    cp.async.cg.shared.global [%r3], [%rd6], 16;
    {wait}
    ld.shared.b32 %r5, [%r3];
"""


@pytest.mark.parametrize(
    ("wait", "finished"),
    [
        ("cp.async.commit_group; cp.async.wait_group 0;", True),
        ("cp.async.wait_all;", True),
        ("cp.async.commit_group; cp.async.wait_group 1;", False),
        ("cp.async.wait_group 0;", False),  # never committed
        ("cp.async.commit_group; bar.sync 0;", False),
    ],
)
def test_a_copy_needs_its_wait(wait: str, finished: bool) -> None:
    data = np.arange(128, dtype=np.uint32)
    if finished:
        execute(COPY.format(wait=wait), data, shared_bytes=512)
    else:
        fault = raw_fault(COPY.format(wait=wait), data, shared_bytes=512)
        assert fault.kind == Kind.UNFINISHED_COPY
        assert "reads what a cp.async fills that was not waited for" in str(fault)


def test_a_copy_of_another_thread_needs_a_barrier_too() -> None:
    data = np.arange(128, dtype=np.uint32)
    other = COPY.replace("ld.shared.b32 %r5, [%r3];", "xor.b32 %r6, %r3, 16; ld.shared.b32 %r5, [%r6];")
    assert raw_fault(other.format(wait="cp.async.wait_all;"), data, shared_bytes=512).kind == Kind.RACE
    execute(other.format(wait="cp.async.wait_all; bar.sync 0;"), data, shared_bytes=512)


def test_division_by_zero_and_trap() -> None:
    assert raw_fault("    mov.u32 %r0, %tid.x; div.u32 %r1, 7, %r0;").kind == Kind.DIVISION_BY_ZERO
    assert raw_fault("    trap;").kind == Kind.TRAP


def test_a_null_pointer() -> None:
    assert raw_fault("    mov.b64 %rd1, 0; ld.global.b32 %r1, [%rd1];").kind == Kind.OUT_OF_BOUNDS
    assert raw_fault("    mov.b32 %r1, 0; ld.shared.b32 %r1, [%r1];", shared_bytes=64).kind == Kind.OUT_OF_BOUNDS


def test_a_wrong_number_of_arguments_of_a_kept_launch() -> None:
    x, out = torch.randn(64), torch.empty(64)
    with compiled_kernels():
        kept = copy_kernel[(1,)](x, out, 64, BLOCK=64)
        with pytest.raises(TypeError, match="a kernel of 4 arguments was launched with 3"):
            kept[(1, 1, 1)](x, out, 64)


def test_a_launch_outside_of_the_block_is_refused() -> None:
    x, out = torch.randn(64), torch.empty(64)
    with compiled_kernels():
        kept = copy_kernel[(1,)](x, out, 64, BLOCK=64)
        run = kept[(1, 1, 1)]
    with pytest.raises(RuntimeError):
        run(x, out, 64, 64, stream=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(name for name, example in EXAMPLES.items() if example.fused == "triton"))
def test_every_barrier_of_every_operator_is_needed(name: str) -> None:
    example = EXAMPLES[name]
    inputs = example.make_inputs(torch.device("cpu"), torch.float32)
    call = lambda: results_of(example.function, inputs, "triton")  # noqa: E731
    found, missed = 0, []
    for kernel, text in texts_of(call).items():
        for number in range(count(BARRIER, text)):
            try:
                run_changed(text, without(BARRIER, number)(text), call)
            except Fault:
                found += 1
            else:
                missed.append(f"{kernel}, barrier {number}")
    assert found >= len(missed), missed
