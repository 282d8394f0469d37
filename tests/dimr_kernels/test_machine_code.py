"""Machine code of every kernel configuration, and the parser that reads it."""

from __future__ import annotations

import pytest

from benchmarks.machine_code.architectures import ARCHITECTURES
from benchmarks.machine_code.compile import OPERATORS, summed_types
from benchmarks.machine_code.listing import LOADS, STORES, Listing
from tests.support.machine_code import compiled_kernels

# Kernels (beginnings of names) without 16-byte accesses, and the widths that they have instead: of loads, of stores.
# The taps of the convolution fill the registers, so a thread holds two channels, four where K is 3; taps and bias are
# float32. The others write one number per row, per column or per group.
NARROW: dict[str, tuple[set[int], set[int]]] = {
    "depthwise_conv_fwd[K=7,bf16": ({8, 4}, {4}),
    "depthwise_conv_fwd[K=7,fp32": ({8}, {8}),
    "depthwise_conv_fwd[K=5,bf16": ({8, 4}, {4}),
    "depthwise_conv_fwd[K=3,bf16": ({16, 8}, {8}),
    "depthwise_conv_weight[K=7,bf16": ({4}, {4}),
    "depthwise_conv_weight[K=7,fp32": ({8}, {4}),
    "depthwise_conv_weight[K=5,bf16": ({4}, {4}),
    "depthwise_conv_weight[K=3,bf16": ({8}, {4}),
    "depthwise_conv_sum": ({16}, {4}),
    "td_norm_bwd_wide_sums": ({16, 4}, {4}),
    "td_group_norm_statistics_fwd": ({4}, {4}),
    "td_group_norm_group_sums_bwd": ({4}, {4}),
    "time_gate_reduce[D=1152": ({16, 4}, {4}),
    "time_gate_reduce[D=38400": ({16, 8, 4}, {8}),
}
# Most instructions per output, of which K * K are fused multiply-adds.
MOST_INSTRUCTIONS = {
    "depthwise_conv_fwd[K=7": 66,
    "depthwise_conv_fwd[K=5": 40,
    "depthwise_conv_fwd[K=3": 17,
    "depthwise_conv_weight[K=7": 75,
    "depthwise_conv_weight[K=5": 44,
    "depthwise_conv_weight[K=3": 24,
}
# For sm_120 ptxas spends a little more on addresses.
MOST_INSTRUCTIONS_120 = {"depthwise_conv_weight[K=7": 78, "depthwise_conv_weight[K=5": 45}
# Enough for three blocks of four warps on a multiprocessor; what lives by its registers may have all of them.
MOST_REGISTERS = 168
ALL_REGISTERS = ("depthwise_conv", "geglu_linear")


def value_for(name: str, table: dict):
    found = [value for beginning, value in table.items() if name.startswith(beginning)]
    assert len(found) <= 1, f"{name} begins like several entries"
    return found[0] if found else None


@pytest.mark.slow
@pytest.mark.parametrize("operator", OPERATORS)
def test_every_configuration(operator):
    rows = compiled_kernels(operator)
    assert {row["architecture"] for row in rows} == set(ARCHITECTURES)
    for row in rows:
        name, where = row["name"], f"{row['name']} sm_{row['architecture']}"
        assert row["spill_bytes"] == 0, f"{where}: {row['spill_bytes']} bytes spilled"
        shared = ARCHITECTURES[row["architecture"]].shared_per_block
        assert row["shared_bytes"] <= shared, f"{where}: {row['shared_bytes']} bytes shared, there are {shared}"
        assert set(row["summed_types"]) <= {"f32"}, f"{where}: sums accumulate in {row['summed_types']}"
        most = 255 if name.startswith(ALL_REGISTERS) else MOST_REGISTERS
        assert row["registers"] <= most, f"{where}: {row['registers']} registers"
        loads, stores = ({int(width) for width in row[kind] if width.isdigit()} for kind in ("loads", "stores"))
        narrow = value_for(name, NARROW)
        if narrow is None:
            assert 16 in loads or "TMA" in row["loads"], f"{where}: no 16-byte load, only {row['loads']}"
            assert 16 in stores or "TMA" in row["stores"], f"{where}: no 16-byte store, only {row['stores']}"
        else:
            assert (loads, stores) == narrow, f"{where}: accesses of {loads} and {stores}, expected {narrow}"
        most_here = MOST_INSTRUCTIONS | (MOST_INSTRUCTIONS_120 if row["architecture"] == 120 else {})
        limit = value_for(name, most_here)
        if limit is not None:
            instructions = row["per_output"]["all"]
            assert 0 < instructions <= limit, f"{where}: {instructions} instructions per output, at most {limit}"


CODE = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.128 R4, [R2.64] ;
        /*0020*/                   LDGSTS.E.BYPASS.128 [R6], [R2.64] ;
.L_x_1:
        /*0030*/                   FFMA R1, R2, R3, R1 ;
        /*0040*/                   MUFU.EX2 R1, R1 ;
        /*0050*/              @P1  BRA `(.L_x_1) ;
        /*0060*/                   STG.E.U16 [R2.64], R1 ;
        /*0070*/                   STG.E [R2.64], R1 ;
        /*0080*/                   UTMALDG.2D [UR8], [UR4] ;
        /*0090*/                   EXIT ;
.L_x_2:
        /*00a0*/                   FADD R1, R1, R1 ;
.L_x_3:
        /*00b0*/                   BRA `(.L_x_3) ;
"""


TTIR = """
    %5 = tt.load %4 : tensor<8x64x!tt.ptr<bf16>>
    %6 = "tt.reduce"(%5) <{axis = 1 : i32}> ({
    ^bb0(%arg2: bf16, %arg3: bf16):
      %8 = arith.addf %arg2, %arg3 : bf16
      tt.reduce.return %8 : bf16
    }) : (tensor<8x64xbf16>) -> tensor<8xbf16>
    %7:2 = "tt.reduce"(%6, %3) <{axis = 0 : i32}> ({
    ^bb0(%arg2: f32, %arg3: f32, %arg4: i32, %arg5: i32):
      tt.reduce.return %8, %9 : f32, i32
    }) : (tensor<8xf32>, tensor<8xi32>) -> (f32, i32)
    tt.store %1, %7 : tensor<16x!tt.ptr<f16>>
"""


def test_types_of_sums():
    assert summed_types(TTIR) == ("bf16", "f32", "i32")


def test_widths_of_accesses():
    listing = Listing(CODE)
    assert listing.accesses(LOADS, ("UTMALDG",)) == {"16": 2, "TMA": 1}
    assert listing.accesses(STORES, ()) == {"2": 1, "4": 1}


def test_counts_of_loops_and_programs():
    listing = Listing(CODE)
    assert listing.loops == [(3, 6)]
    assert listing.per_turn() == {"all": 3, "float32": 1, "integer": 0, "special": 1}
    # Ten instructions up to the exit, three of them in a loop of four turns; what follows the exit is a slow path.
    assert listing.per_program(4) == {"all": 10 + 3 * 3, "float32": 4, "integer": 0, "special": 4}
