"""Compile Triton kernels for an architecture without a GPU, and read what the machine code costs.

``python -m dimr_kernels.static_analysis [operator ...]`` prints one JSON object per configuration. Run it in a
process of its own without TRITON_INTERPRET=1: the interpreter's kernels cannot be compiled.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from .ops.launch import KernelCase

OPERATORS = ("geglu",)
ARCHITECTURES = (80, 90)
_ACCESS = re.compile(r"\b(LDG|STG|LDL|STL)(?:\.[A-Z0-9]+)*")


@dataclass(frozen=True)
class CompiledKernel:
    """What ptxas made of one configuration."""

    name: str
    architecture: int
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
    compile_seconds: float

    @property
    def widest_load(self) -> int:
        return max((int(width) for width in self.loads), default=0)

    @property
    def widest_store(self) -> int:
        return max((int(width) for width in self.stores), default=0)


def operator_cases(operator: str) -> list[KernelCase]:
    return list(importlib.import_module(f"dimr_kernels.ops.{operator}.triton").cases())


def compile_case(case: KernelCase, architecture: int) -> CompiledKernel:
    import triton
    from triton.backends.compiler import GPUTarget
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
        options={"num_warps": case.num_warps, "num_stages": case.num_stages},
    )
    seconds = time.perf_counter() - start
    registers, spill = _resources(compiled.asm["cubin"])
    opcodes, loads, stores = _instructions(compiled.asm["cubin"])
    return CompiledKernel(
        case.name, architecture, registers, spill, compiled.metadata.shared, loads, stores, opcodes, round(seconds, 3)
    )


def _tool(name: str) -> str:
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)


def _run_on_cubin(cubin: bytes, *command: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([*command, file.name], capture_output=True, text=True, check=True).stdout


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and local-memory bytes per thread. The stack counts: indexed arrays live there too."""
    text = _run_on_cubin(cubin, _tool("cuobjdump"), "-res-usage")
    usage = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text))
    return int(usage["REG"]), int(usage["STACK"]) + int(usage["LOCAL"])


def _instructions(cubin: bytes) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    opcodes: Counter[str] = Counter()
    accesses: dict[str, Counter[str]] = {"LDG": Counter(), "STG": Counter(), "LDL": Counter(), "STL": Counter()}
    for line in _run_on_cubin(cubin, _tool("nvdisasm"), "-c").splitlines():
        match = re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", line)
        if match is None:
            continue
        instruction = match.group(1)
        opcode = instruction.partition(".")[0]
        opcodes[opcode] += 1
        if opcode in accesses:
            accesses[opcode][str(_access_bytes(instruction))] += 1
    return dict(opcodes), dict(accesses["LDG"]), dict(accesses["STG"])


def _access_bytes(instruction: str) -> int:
    parts = instruction.split(".")
    for suffix, width in (("128", 16), ("64", 8), ("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1), ("16", 2), ("8", 1)):
        if suffix in parts:
            return width
    return 4


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compile every kernel configuration and print its cost as JSON lines.")
    parser.add_argument("operators", nargs="*", default=OPERATORS)
    parser.add_argument("--architecture", type=int, action="append", help="compute capability times ten: 80, 90")
    options = parser.parse_args(arguments)
    for operator in options.operators:
        for case in operator_cases(operator):
            for architecture in options.architecture or ARCHITECTURES:
                sys.stdout.write(json.dumps(asdict(compile_case(case, architecture))) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
