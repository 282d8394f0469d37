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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .ops.launch import KernelCase

OPERATORS = ("depthwise_conv", "geglu", "geglu_linear", "shuffle_norm_add", "td_norm")
ARCHITECTURES = (80, 90)
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")


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
    instructions_per_output: float | None
    """Issued by one lane per turn of the longest innermost loop, per element; None without ``outputs_per_turn``."""
    compile_seconds: float

    @property
    def widest_load(self) -> int:
        return max((int(width) for width in self.loads), default=0)

    @property
    def widest_store(self) -> int:
        return max((int(width) for width in self.stores), default=0)


def operator_cases(operator: str) -> list[KernelCase]:
    return list(importlib.import_module(f"dimr_kernels.ops.{operator}.triton").cases())


def cases_by_architecture(
    operator: str, architectures: Sequence[int] = ARCHITECTURES
) -> Iterator[tuple[KernelCase, int]]:
    """Each configuration with each architecture that launches it."""
    for case in operator_cases(operator):
        for architecture in architectures:
            if not case.architectures or architecture in case.architectures:
                yield case, architecture


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
    code = _run_on_cubin(compiled.asm["cubin"], _tool("nvdisasm"), "-c")
    opcodes, loads, stores = _instructions(code)
    per_output = None
    if case.outputs_per_turn:
        per_output = round(_longest_loop(code) * 32 * case.num_warps / case.outputs_per_turn, 2)
    return CompiledKernel(
        name=case.name,
        architecture=architecture,
        registers=registers,
        spill_bytes=spill,
        shared_bytes=compiled.metadata.shared,
        loads=loads,
        stores=stores,
        opcodes=opcodes,
        instructions_per_output=per_output,
        compile_seconds=round(seconds, 3),
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


def _instructions(code: str) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    opcodes: Counter[str] = Counter()
    accesses: dict[str, Counter[str]] = {"LDG": Counter(), "STG": Counter()}
    for line in code.splitlines():
        match = _INSTRUCTION.search(line)
        if match is None:
            continue
        instruction = match.group(1)
        opcode = instruction.partition(".")[0]
        opcodes[opcode] += 1
        memory = "LDG" if opcode == "LDGSTS" else opcode  # cp.async: a load that goes straight to shared memory
        if memory in accesses:
            accesses[memory][str(_access_bytes(instruction))] += 1
    return dict(opcodes), dict(accesses["LDG"]), dict(accesses["STG"])


def _longest_loop(code: str) -> int:
    """Instructions between a label and the branch back to it, the longest among loops that hold no other loop."""
    count = 0
    labels: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label.group(1)] = count
        elif instruction := _INSTRUCTION.search(line):
            count += 1
            target = re.search(r"\bBRA\b.*?(\.L_\w+)", line) if instruction.group(1).startswith("BRA") else None
            if target is not None and target.group(1) in labels:
                loops.append((labels[target.group(1)], count))
    innermost = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return max((end - start for start, end in innermost), default=0)


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
        for case, architecture in cases_by_architecture(operator, options.architecture or ARCHITECTURES):
            sys.stdout.write(json.dumps(asdict(compile_case(case, architecture))) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
