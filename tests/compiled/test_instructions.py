"""Single instructions against values known otherwise."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from .ptx.faults import Unsupported
from .ptx.values import Array
from .raw import apply, execute

f32, i32, u32 = np.float32, np.int32, np.uint32
SPECIALS = np.array([0.0, -0.0, 1.0, -1.5, np.inf, -np.inf, np.nan, 1e-40, 3e38, 2.0**-126], f32)


def floats(n: int = 512, seed: int = 0) -> Array:
    """Draw floats of all magnitudes."""
    rng = np.random.default_rng(seed)
    return np.concatenate([SPECIALS, (rng.standard_normal(n) * 2.0 ** rng.integers(-40, 40, n)).astype(f32)])


def same_bits(found: Array, wanted: Array) -> None:
    wanted = np.ascontiguousarray(wanted).view(found.dtype)
    both_nan = np.isnan(found.view(f32)) & np.isnan(wanted.view(f32)) if found.itemsize == 4 else np.zeros(1, bool)
    assert ((found == wanted) | both_nan).all()


@pytest.mark.parametrize(("name", "function"), [("add", np.add), ("sub", np.subtract), ("mul", np.multiply)])
def test_float_arithmetic(name: str, function: np.ufunc) -> None:
    a, b = floats(), floats()[::-1].copy()
    with np.errstate(all="ignore"):
        same_bits(apply(f"{name}.f32 $0, $1, $2;", a, b), function(a, b))


def test_fma_rounds_once() -> None:
    """Against exact fractions, where a product and a sum lie half way between two floats, or nearly."""
    rng = np.random.default_rng(1)
    a = (1 + rng.integers(0, 2**12, 256) * 2.0**-12).astype(f32)
    b = (1 + rng.integers(0, 2**12, 256) * 2.0**-12).astype(f32)
    c = (rng.choice([-1, 1], 256) * 2.0 ** rng.integers(-60, 26, 256)).astype(f32)
    c[:32] = rng.choice([-1, 1], 32) * f32(2.0**-70)
    a[:32] = b[:32] = 1 + f32(2.0**-12)  # 1 + 2**-11 + 2**-24 is half way, and c far below what float64 holds
    found = apply("fma.rn.f32 $0, $1, $2, $3;", a, b, c).view(f32)
    for x, y, z, got in zip(a, b, c, found, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        below, above = np.nextafter(got, f32(-np.inf)), np.nextafter(got, f32(np.inf))
        distance = abs(Fraction(float(got)) - exact)
        assert distance <= min(abs(Fraction(float(other)) - exact) for other in (below, above))
    assert set(found[:32].tolist()) == {1 + 2.0**-11, 1 + 2.0**-11 + 2.0**-23}


def test_flush_to_zero() -> None:
    x, tiny = np.array([1e-39, -1e-39, 1.0], f32), np.array([1.0, 1.0, 1e-40], f32)
    same_bits(apply("mul.ftz.f32 $0, $1, $2;", x, tiny), np.array([0.0, -0.0, 0.0], f32))
    assert (apply("mul.f32 $0, $1, $2;", x, tiny).view(f32)[:2] != 0).all()


@pytest.mark.parametrize(("kind", "dtype"), [("f16x2", torch.float16), ("bf16x2", torch.bfloat16)])
@pytest.mark.parametrize("name", ["add", "mul", "fma"])
def test_pairs_of_halves(name: str, kind: str, dtype: torch.dtype) -> None:
    count = 3 if name == "fma" else 2
    halves = [torch.randn(256, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(count)]
    packed = [half.view(torch.int16).numpy().view(u32) for half in halves]
    a, b = halves[0].double(), halves[1].double()
    exact = {"add": lambda: a + b, "mul": lambda: a * b, "fma": lambda: a * b + halves[2].double()}[name]()
    places = ", ".join(f"${i}" for i in range(count + 1))
    found = apply(f"{name}{'.rn' if name == 'fma' else ''}.{kind} {places};", *packed)
    assert torch.equal(torch.from_numpy(found.view(np.int16)).view(dtype), exact.to(torch.float32).to(dtype))


@pytest.mark.parametrize(
    ("instruction", "function", "ulps"),
    [
        ("ex2.approx.f32", lambda x: np.exp2(x), 2),
        ("rcp.approx.f32", lambda x: 1 / x, 1),
        ("sqrt.approx.f32", lambda x: np.sqrt(x), 2),
        ("rsqrt.approx.f32", lambda x: 1 / np.sqrt(x), 3),
    ],
)
def test_approximate_functions_within_their_bounds(instruction: str, function, ulps: float) -> None:
    x = np.random.default_rng(0).uniform(0.01, 60, 1024).astype(f32)
    exact = function(x.astype(np.float64))
    off = [
        np.abs(apply(f"{instruction} $0, $1;", x, exact=nearest).view(f32) - exact) / np.spacing(exact.astype(f32))
        for nearest in (True, False)
    ]
    assert off[0].max() <= 0.5
    assert 0.7 * min(ulps, 2) / 2 < off[1].max() <= ulps


def test_approximate_functions_are_functions() -> None:
    x = np.repeat(floats(31), 2)[:64].copy()
    found = apply("ex2.approx.f32 $0, $1;", x, exact=False)
    same_bits(found[0::2], found[1::2])


def test_division() -> None:
    a, b = floats(), floats(seed=2)
    with np.errstate(all="ignore"):
        same_bits(apply("div.rn.f32 $0, $1, $2;", a, b), a / b)
    x, y = np.abs(a[10:]) + 1, np.abs(b[10:]) + 1
    found = apply("div.full.f32 $0, $1, $2;", x, y, exact=False).view(f32)
    exact = x.astype(np.float64) / y
    off = np.abs(found - exact) / np.spacing(exact.astype(f32))
    assert 0.7 < off.max() <= 2


@pytest.mark.parametrize(
    ("instruction", "a", "b", "wanted"),
    [
        ("add.s32", 2**31 - 1, 1, 2**31),
        ("sub.s32", 0, 1, 2**32 - 1),
        ("mul.lo.s32", 2**20, 2**20 + 1, 2**20),
        ("mul.hi.u32", 2**31, 6, 3),
        ("div.s32", -7, 2, -3),
        ("div.u32", -7, 2, (2**32 - 7) // 2),
        ("rem.s32", -7, 2, -1),
        ("min.s32", -7, 2, -7),
        ("max.u32", -7, 2, -7),
        ("shl.b32", 1, 32, 0),
        ("shr.s32", -8, 40, -1),
        ("shr.u32", -8, 1, 2**31 - 4),
        ("add.s16x2", 0x0001FFFF, 0x00010001, 0x00020000),
        ("and.b32", 12, 10, 8),
        ("or.b32", 12, 10, 14),
        ("xor.b32", 12, 10, 6),
    ],
)
def test_integers(instruction: str, a: int, b: int, wanted: int) -> None:
    found = apply(f"{instruction} $0, $1, $2;", np.array([a & 0xFFFFFFFF], u32), np.array([b & 0xFFFFFFFF], u32))
    assert int(found[0]) == wanted & 0xFFFFFFFF


def test_wide_products_and_sums() -> None:
    a, b = np.array([-3, 2**31 - 1], i32), np.array([7, 2**31 - 1], i32)
    assert apply("mul.wide.s32 $0, $1, $2;", a, b, kind="u64").view(np.int64).tolist() == [-21, (2**31 - 1) ** 2]
    c = np.array([10, 5], np.int64)
    assert apply("mad.wide.s32 $0, $1, $2, $3;", a, b, c, kind="u64").view(np.int64)[0] == -11


def test_bits() -> None:
    x = np.array([0xF1234567], u32)
    for text, wanted in (
        ("bfe.u32 $0, $1, 4, 8;", 0x56),
        ("bfe.s32 $0, $1, 28, 4;", 0xFFFFFFFF),
        ("bfe.s32 $0, $1, 20, 20;", 0xFFFFFF12),
        ("popc.b32 $0, $1;", bin(0xF1234567).count("1")),
        ("clz.b32 $0, $1;", 0),
        ("brev.b32 $0, $1;", int(f"{0xF1234567:032b}"[::-1], 2)),
        ("prmt.b32 $0, $1, 0, 0x3210;", 0xF1234567),
        ("prmt.b32 $0, $1, 0, 0x0123;", 0x674523F1),
        ("prmt.b32 $0, $1, 0, 0x888B;", 0x000000FF),
        ("shf.l.wrap.b32 $0, $1, $1, 8;", 0x234567F1),
        ("lop3.b32 $0, $1, 0xFFFF, 0, 0xC0;", 0x4567),
    ):
        assert hex(int(apply(text, x)[0])) == hex(wanted), text


@pytest.mark.parametrize("name", ["lt", "le", "eq", "ne", "ge", "gt", "ltu", "neu", "num", "nan"])
def test_comparisons(name: str) -> None:
    a, b = np.repeat(SPECIALS, len(SPECIALS)), np.tile(SPECIALS, len(SPECIALS))
    found = apply(f"setp.{name}.f32 %p1, $1, $2; selp.b32 $0, 1, 0, %p1;", a, b).astype(bool)
    for x, y, got in zip(a.tolist(), b.tolist(), found, strict=True):
        unordered = math.isnan(x) or math.isnan(y)
        wanted = {
            "lt": x < y, "le": x <= y, "eq": x == y, "ne": not unordered and x != y, "ge": x >= y, "gt": x > y,
            "ltu": unordered or x < y, "neu": x != y, "num": not unordered, "nan": unordered,
        }[name]  # fmt: skip
        assert got == wanted, (x, name, y)


def test_conversions() -> None:
    x = floats()
    bf16 = torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16)
    found = apply("cvt.rn.bf16.f32 $0, $1;", x, kind="u16")
    assert (found == bf16)[~np.isnan(x)].all()
    same_bits(
        apply("cvt.f32.bf16 $0, $1;", bf16), torch.from_numpy(bf16.view(np.int16)).view(torch.bfloat16).float().numpy()
    )
    pair = apply("cvt.rn.bf16x2.f32 $0, $1, $2;", x, x[::-1].copy())
    assert (pair >> 16 == bf16)[~np.isnan(x)].all()
    numbers = np.array([2.5, -2.5, 3e9, -3e9, np.nan, 0.99], f32)
    assert apply("cvt.rzi.s32.f32 $0, $1;", numbers).view(i32).tolist() == [2, -2, 2**31 - 1, -(2**31), 0, 0]
    assert apply("cvt.rni.s32.f32 $0, $1;", numbers).view(i32).tolist()[:2] == [2, -2]
    same_bits(apply("cvt.rn.f32.f64 $0, $1;", x.astype(np.float64) * (1 + 2.0**-30)), x)
    assert apply("cvt.f64.f32 $0, $1;", numbers, kind="u64").view(np.float64)[0] == 2.5
    assert apply("cvt.s64.s32 $0, $1;", np.array([-5], i32), kind="u64").view(np.int64)[0] == -5
    assert apply("cvt.u64.u32 $0, $1;", np.array([-5], i32), kind="u64")[0] == 2**32 - 5
    assert apply("cvt.rn.f32.u64 $0, $1;", np.array([2**40 + 1], np.uint64)).view(f32)[0] == 2.0**40


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("shfl.sync.bfly.b32 $0, $1, 4, 31, -1;", [i ^ 4 for i in range(32)]),
        ("shfl.sync.idx.b32 $0, $1, 3, 31, -1;", [3] * 32),
        ("shfl.sync.idx.b32 $0, $1, 3, 0x181f, -1;", [i // 8 * 8 + 3 for i in range(32)]),
        ("shfl.sync.up.b32 $0, $1, 2, 0, -1;", [max(i - 2, i if i < 2 else 0) for i in range(32)]),
        ("shfl.sync.down.b32 $0, $1, 2, 31, -1;", [i + 2 if i < 30 else i for i in range(32)]),
        ("redux.sync.add.u32 $0, $1, -1;", [496] * 32),
        ("setp.lt.u32 %p1, $1, 5; vote.sync.ballot.b32 $0, %p1, -1;", [31] * 32),
    ],
)
def test_exchanges(text: str, wanted: list[int]) -> None:
    assert apply(text, np.arange(32, dtype=u32)).tolist() == wanted


def test_lanes_that_part_and_meet() -> None:
    body = """
    setp.lt.u32 %p1, $1, 7;
    @%p1 bra $low;
    mov.b32 $0, 100;
    bra.uni $end;
$low:
    setp.eq.b32 %p2, $1, 3;
    mov.b32 $0, 200;
    @%p2 mov.b32 $0, 300;
$end:
    add.s32 $0, $0, $1;
"""
    found = apply(body, np.arange(32, dtype=u32))
    assert found.tolist() == [(300 if i == 3 else 200 if i < 7 else 100) + i for i in range(32)]


def test_mma_and_matrix_loads() -> None:
    """A [16, 16] and B [16, 8] go through shared memory and ldmatrix, as kernels have them."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(-4, 5, (16, 16)).astype(np.float16), rng.integers(-4, 5, (8, 16)).astype(np.float16)
    out = np.zeros((32, 4), f32)
    body = """
    mov.u32 %r0, %tid.x;
    mov.b32 %r1, global_smem;
    shl.b32 %r2, %r0, 4;
    cvt.u64.u32 %rd5, %r2;
    add.s64 %rd6, %rd0, %rd5;
    ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%rd6];
    add.s32 %r3, %r1, %r2;
    st.shared.v4.b32 [%r3], {%r4, %r5, %r6, %r7};
    setp.lt.u32 %p1, %r0, 16;
    add.s64 %rd6, %rd1, %rd5;
    @%p1 ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%rd6];
    @%p1 st.shared.v4.b32 [%r3+512], {%r4, %r5, %r6, %r7};
    bar.warp.sync -1;
    and.b32 %r8, %r0, 15;
    shl.b32 %r8, %r8, 5;
    and.b32 %r9, %r0, 16;
    add.s32 %r8, %r8, %r9;
    add.s32 %r8, %r8, %r1;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r10, %r11, %r12, %r13}, [%r8];
    and.b32 %r8, %r0, 7;
    shl.b32 %r8, %r8, 5;
    shl.b32 %r9, %r0, 1;
    and.b32 %r9, %r9, 16;
    add.s32 %r8, %r8, %r9;
    add.s32 %r8, %r8, %r1;
    ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r14, %r15}, [%r8+512];
    mov.b32 %r16, 0f3F800000;
    mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%r20, %r21, %r22, %r23},
        {%r10, %r11, %r12, %r13}, {%r14, %r15}, {%r16, %r16, %r16, %r16};
    add.s64 %rd6, %rd2, %rd5;
    st.global.v4.b32 [%rd6], {%r20, %r21, %r22, %r23};
"""
    execute(body, a, b, out, shared_bytes=768)
    wanted = 1 + a.astype(f32) @ b.T.astype(f32)
    for lane in range(32):
        row, column = lane // 4, 2 * (lane % 4)
        found = [wanted[row, column], wanted[row, column + 1], wanted[row + 8, column], wanted[row + 8, column + 1]]
        assert out[lane].tolist() == found


@pytest.mark.parametrize(
    "text",
    [
        "add.sat.f32 $0, $1, $1;",
        "add.rz.f32 $0, $1, $1;",
        "sad.u32 $0, $1, $1, $1;",
        "atom.global.add.u32 $0, [%rd1], $1;",
    ],
)
def test_what_is_not_implemented_is_refused(text: str) -> None:
    with pytest.raises(Unsupported, match="PTX line"):
        apply(text, np.zeros(32, u32))
