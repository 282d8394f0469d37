"""Compile Triton kernels for an architecture without a GPU, and read the cost off the machine code.

``python -m benchmarks.machine_code.compile [operator ...]`` prints one JSON object per configuration and architecture.
Run it in a process of its own without TRITON_INTERPRET=1: the interpreter's kernels cannot be compiled.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from dimr_kernels.launch import assume_architecture

from . import cases_depthwise_conv, cases_geglu, cases_norms
from .architectures import ARCHITECTURES
from .case import KernelCase
from .listing import BULK_LOADS, BULK_STORES, LOADS, STORES, Listing

CASES = cases_depthwise_conv.CASES | cases_geglu.CASES | cases_norms.CASES
OPERATORS = tuple(sorted(CASES))


@dataclass(frozen=True)
class CompiledKernel:
    """Cost of one configuration, as compiled by ptxas."""

    name: str
    architecture: int
    num_warps: int
    registers: int
    """Per thread."""
    spill_bytes: int
    """Local memory per thread; 0 means nothing spilled."""
    shared_bytes: int
    loads: dict[str, int]
    """Bytes per access -> number of global loads in the machine code."""
    stores: dict[str, int]
    opcodes: dict[str, int]
    """First word of each instruction -> how often it occurs."""
    per_output: dict[str, float]
    """Instructions per element, "all" and by the unit that runs them; empty where the figure means nothing."""
    bytes_per_output: float
    """Fewest bytes moved to and from memory; 0 where the figure means nothing."""
    compile_seconds: float
    compiler: str
    """Versions of Triton and of the ptxas that it calls for this architecture."""
    summed_types: tuple[str, ...]
    """Element types that reductions accumulate in, such as "f32"."""

    @property
    def instructions_per_output(self) -> float | None:
        return self.per_output.get("all")


@cache
def operator_cases(operator: str, architecture: int) -> list[KernelCase]:
    """List what the operator launches on this architecture; a kernel that serves several shapes is one case."""
    with assume_architecture(architecture):
        return merged(CASES[operator]())


def merged(cases: Iterable[KernelCase]) -> list[KernelCase]:
    """Merge cases that compile to the same machine code into one, named after all."""
    same: dict[str, list[KernelCase]] = {}
    for case in cases:
        key = (case.kernel.__name__, case.signature, case.constants, case.num_warps, case.num_stages)
        same.setdefault(f"{key}{sorted(case.aligned)}", []).append(case)
    # The figures per output are those of the shape that uses the least of the kernel's lanes.
    first = [min(group, key=lambda case: case.outputs_per_program or case.outputs_per_turn) for group in same.values()]
    names = [merged_name([case.name for case in group]) for group in same.values()]
    return [dataclasses.replace(case, name=name) for case, name in zip(first, names, strict=True)]


def merged_name(names: Sequence[str]) -> str:
    """Merge names: ``f[D=480,bf16]`` and ``f[D=384,bf16]`` -> ``f[D=384|480,bf16]``."""
    kernel, _, rest = names[0].partition("[")
    fields = zip(*(name.partition("[")[2].rstrip("]").split(",") for name in names), strict=True)
    parts = []
    for values in fields:
        label, equals, _ = values[0].partition("=")
        found = dict.fromkeys(value.partition("=")[2] for value in values)
        parts.append(f"{label}={'|'.join(sorted(found, key=lambda v: (len(v), v)))}" if equals else values[0])
    return f"{kernel}[{','.join(parts)}]" if rest else kernel


def compile_all(operators: Iterable[str], architectures: Iterable[int], processes: int = 0) -> Iterator[CompiledKernel]:
    """Compile every configuration for every architecture, in parallel processes (0: as many as there are cores)."""
    numbered = [
        (operator, architecture, number)
        for operator in operators
        for architecture in architectures
        for number in range(len(operator_cases(operator, architecture)))
    ]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes or os.cpu_count(), mp_context=spawn) as pool:
        yield from pool.map(_compile_numbered, numbered)


def _compile_numbered(numbered: tuple[str, int, int]) -> CompiledKernel:
    """Compile a case by its number, since kernels cannot be sent to another process."""
    operator, architecture, number = numbered
    return compile_case(operator_cases(operator, architecture)[number], architecture)


def compile_case(case: KernelCase, architecture: int) -> CompiledKernel:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import get_ptxas
    from triton.compiler import ASTSource

    names = list(case.kernel.arg_names)
    signature = {n: "constexpr" if n in case.constants else case.signature[n] for n in names}
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in case.aligned}
    constants = {(names.index(n),): value for n, value in case.constants.items()}
    source = ASTSource(fn=case.kernel, signature=signature, constexprs=constants, attrs=attributes)
    start = time.perf_counter()
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": case.num_warps, "num_stages": case.num_stages, "enable_fp_fusion": True},
    )
    seconds = time.perf_counter() - start
    cubin = compiled.asm["cubin"]
    registers, spill = _resources(cubin)
    listing = Listing(_run_on_cubin(cubin, tool("nvdisasm"), "-c"))
    return CompiledKernel(
        name=case.name,
        architecture=architecture,
        num_warps=case.num_warps,
        registers=registers,
        spill_bytes=spill,
        shared_bytes=compiled.metadata.shared,
        loads=listing.accesses(LOADS, BULK_LOADS),
        stores=listing.accesses(STORES, BULK_STORES),
        opcodes=listing.opcodes,
        per_output=_per_output(case, listing),
        bytes_per_output=case.bytes_per_output,
        compile_seconds=round(seconds, 2),
        compiler=f"Triton {triton.__version__}, ptxas {get_ptxas(architecture).version}",
        summed_types=summed_types(compiled.asm["ttir"]),
    )


_REDUCTION = re.compile(r'"tt\.reduce"\(.*?\}\) : \((.*?)\) -> ', re.DOTALL)


def summed_types(ttir: str) -> tuple[str, ...]:
    """Read the element types that Triton's intermediate code reduces, ``tensor<8x256xf32>`` -> "f32"."""
    operands = " ".join(_REDUCTION.findall(ttir))
    return tuple(sorted(set(re.findall(r"tensor<(?:\d+x)*(\w+)", operands))))


def _per_output(case: KernelCase, listing: Listing) -> dict[str, float]:
    if case.outputs_per_turn:
        counted, outputs = listing.per_turn(), case.outputs_per_turn
    elif case.outputs_per_program:
        counted, outputs = listing.per_program(case.turns), case.outputs_per_program
    else:
        return {}
    return {unit: round(32 * case.num_warps * count / outputs, 2) for unit, count in counted.items()}


def tool(name: str) -> str:
    """Return the path of an NVIDIA tool in Triton's package."""
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _run_on_cubin(cubin: bytes, *command: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([*command, file.name], capture_output=True, text=True, check=True).stdout


def _resources(cubin: bytes) -> tuple[int, int]:
    """Read registers and local-memory bytes per thread. The stack counts: indexed arrays live there too."""
    text = _run_on_cubin(cubin, tool("cuobjdump"), "-res-usage")
    usage = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text))
    return int(usage["REG"]), int(usage["STACK"]) + int(usage["LOCAL"])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compile every kernel configuration and print its cost as JSON lines.")
    parser.add_argument("operators", nargs="*", default=OPERATORS)
    parser.add_argument(
        "--architecture",
        type=int,
        action="append",
        choices=tuple(ARCHITECTURES),
        help="compute capability times ten; default: all",
    )
    parser.add_argument("--processes", type=int, default=0, help="default: as many as there are cores")
    options = parser.parse_args(arguments)
    for compiled in compile_all(options.operators, options.architecture or ARCHITECTURES, options.processes):
        sys.stdout.write(json.dumps(asdict(compiled)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
