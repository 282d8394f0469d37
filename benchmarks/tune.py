"""Time candidate launch configurations of each kernel, so that a person can choose the one it runs with.

``python -m benchmarks.tune [operator ...]`` on a GPU: at the target shapes, every candidate is compiled (what spills
drops out), tested against the eager definition in float64, and timed under a CUDA graph on a cold cache. The times go
into ``benchmarks/results/<gpu>/tuning.json``; the best is printed beside the present choice. The functions beside the
kernels that choose a configuration are edited by hand.

``--dry-run`` needs no GPU: it lists the candidates with the cost of their machine code, for both architectures.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import dimr_kernels as dk
from dimr.utils import replacing
from dimr_kernels.dispatch import TRITON_INSTALLED, TRITON_INTERPRETS
from dimr_kernels.launch import (
    GPU_FAMILIES,
    LaunchConfig,
    RowConfig,
    assume_architecture,
    gpu_family,
    launch_configs,
    next_power_of_2,
    override_config,
)
from dimr_kernels.ops.depthwise_conv_triton import ConvConfig
from dimr_kernels.ops.geglu_triton import MatmulConfig
from dimr_kernels.ops.time_gate import WIDEST_IN_REGISTERS

from . import timing
from .machine_code.architectures import ARCHITECTURES
from .machine_code.case import KernelCase
from .machine_code.compile import CASES, OPERATORS, CompiledKernel, compile_case
from .measurement import Case, Machine, prepare, prove
from .report import RESULTS, slug
from .rivals import Unavailable
from .workload import Rival, Workload

logger = logging.getLogger(__name__)

DTYPE = torch.bfloat16


def _whole_rows(max_tiles: int) -> Callable[[int], list[LaunchConfig]]:
    """Candidates for tiles of whole rows: 8 to 64 elements per thread, few programs and many."""

    def candidates(D: int) -> list[LaunchConfig]:
        return [
            RowConfig(elements=elements, min_programs=programs, max_tiles=max_tiles, num_warps=warps)
            for elements in (1024, 2048, 4096, 8192)
            for warps in (2, 4, 8, 16)
            for programs in (1024, 4096)
            if elements >= next_power_of_2(D) and 8 <= elements // (32 * warps) <= 64
        ]

    return candidates


def _column_blocks(max_tiles: int) -> Callable[[int], list[LaunchConfig]]:
    """Candidates for blocks of columns: 8 to 64 elements per thread and many programs."""

    def candidates(D: int) -> list[LaunchConfig]:
        return [
            RowConfig(elements=elements, columns=columns, min_programs=4096, max_tiles=max_tiles, num_warps=warps)
            for columns in (1024, 2048)
            for elements in (1024, 2048, 4096, 8192)
            for warps in (2, 4, 8, 16)
            if elements >= columns and 8 <= elements // (32 * warps) <= 64
        ]

    return candidates


def _wide_rows(*choices: tuple[int, int, int]) -> Callable[[int], list[LaunchConfig]]:
    """Candidates for rows that are read in blocks of columns: columns, rows, warps."""
    return lambda D: [
        RowConfig(elements=columns * rows, columns=columns, num_warps=warps) for columns, rows, warps in choices
    ]


def _gate_sums(D: int) -> list[LaunchConfig]:
    return [
        RowConfig(elements=elements, columns=columns, max_tiles=tiles, num_warps=4)
        for columns in (32, 64, 128)
        for elements in (1024, 2048)
        for tiles in (2, 8, 32)
    ]


def _geglu(D: int) -> list[LaunchConfig]:
    return [
        RowConfig(elements=elements, columns=columns, num_warps=warps)
        for elements, warps in ((1024, 4), (2048, 4), (4096, 8), (8192, 8))
        for columns in (256, 1024)
    ]


def _geglu_linear(N: int) -> list[LaunchConfig]:
    choices = {  # block_m, block_n, block_k, num_warps, num_stages
        80: ((128, 64, 32, 4, 4), (128, 64, 32, 8, 4), (128, 64, 64, 8, 3), (128, 128, 32, 8, 3), (64, 64, 64, 4, 3)),
        90: ((128, 128, 64, 8, 3), (128, 128, 64, 8, 4), (128, 64, 64, 4, 3), (128, 64, 64, 8, 3), (64, 128, 64, 4, 3)),
    }
    return [
        MatmulConfig(block_m=m, block_n=n, block_k=k, group_m=8, num_warps=warps, num_stages=stages)
        for m, n, k, warps, stages in choices[gpu_family()]
    ]


def _convolution(K: int, W: int) -> list[LaunchConfig]:
    """Candidates of columns, groups, warps; at K = 7 many do not fit the registers and drop out when compiled."""
    choices = ((4, 2, 1), (4, 4, 1), (4, 4, 2), (4, 8, 4), (2, 4, 1), (2, 8, 2), (8, 2, 1), (2, 4, 2))
    return [
        ConvConfig(cols=cols, groups=groups, num_warps=warps, resident_warps=resident)
        for cols, groups, warps in choices
        if cols <= W
        for resident in (512, 1024, 2048)
    ]


CANDIDATES: dict[str, Callable[..., list[LaunchConfig]]] = {
    "depthwise_conv_fwd": _convolution,
    "depthwise_conv_weight": _convolution,
    "geglu_bwd": _geglu,
    "geglu_fwd": _geglu,
    "geglu_linear": _geglu_linear,
    "shuffle_norm_add_bwd": _whole_rows(max_tiles=32),
    "shuffle_norm_add_fwd": _whole_rows(max_tiles=16),
    "td_group_norm_bwd": _column_blocks(max_tiles=16),
    "td_group_norm_fwd": _column_blocks(max_tiles=16),
    "td_group_norm_moments_fwd": _column_blocks(max_tiles=32),
    "td_group_norm_sums_bwd": _column_blocks(max_tiles=32),
    "td_norm_bwd": _whole_rows(max_tiles=32),
    "td_norm_bwd_wide": _column_blocks(max_tiles=32),
    "td_norm_bwd_wide_sums": _wide_rows((2048, 1, 4), (2048, 1, 8), (4096, 1, 8), (4096, 2, 16), (4096, 4, 16)),
    "td_norm_fwd": _whole_rows(max_tiles=16),
    "td_norm_fwd_wide": _wide_rows((4096, 4, 16), (4096, 2, 16), (2048, 4, 16), (4096, 1, 8), (8192, 1, 16)),
    "time_gate_reduce": _gate_sums,
}
"""Kernel -> configurations worth timing at the sizes that its function is called with."""


def candidates(kernel: str, *sizes: int) -> list[LaunchConfig]:
    """List what is worth timing, the present choice first, nothing twice."""
    return list(dict.fromkeys((launch_configs[kernel](*sizes), *CANDIDATES[kernel](*sizes))))


@dataclass(frozen=True)
class Problem:
    """One kernel at one shape, timed in the direction in which it runs."""

    operator: str
    kernel: str
    sizes: tuple[int, ...]
    """Arguments of the function that chooses the kernel's configuration."""
    workload: Workload
    direction: str

    def __str__(self) -> str:
        return f"{self.kernel} for {self.workload.operator} {self.workload.shape} {self.direction}"


def problems(operator: str, device: torch.device) -> Iterator[Problem]:
    """Yield the kernels that the operator launches at every target shape."""
    benchmark = importlib.import_module(f"benchmarks.test_{operator}")
    for shape in benchmark.SHAPES.target:
        workload = benchmark.workload(shape, DTYPE, device)
        for kernel, direction, sizes in kernels_for(operator, shape):
            yield Problem(operator, kernel, sizes, workload, direction)


def kernels_for(operator: str, shape: Any) -> list[tuple[str, str, tuple[int, ...]]]:
    """List kernel, the direction in which it runs, and the sizes that its configuration depends on."""
    if operator == "depthwise_conv":
        sizes = shape.kernel_size, shape.side
        return [("depthwise_conv_fwd", "forward", sizes), ("depthwise_conv_weight", "weight_gradient", sizes)]
    if operator == "geglu_linear":
        return [("geglu_linear", "forward", (shape.hidden,))]
    kernels = [kernel for kernel in CANDIDATES if kernel.startswith(operator) and kernel != "geglu_linear"]
    if operator == "td_norm":
        kernels = [kernel for kernel in kernels if ("_wide" in kernel) == (shape.width > WIDEST_IN_REGISTERS)]
        kernels.append("time_gate_reduce")
    return [(kernel, "forward" if "_fwd" in kernel else "backward", (shape.width,)) for kernel in kernels]


def case_of(problem: Problem, config: LaunchConfig) -> KernelCase | None:
    """Describe the kernel with this configuration, at the problem's size if the size is part of its name."""
    with override_config(problem.kernel, config):
        cases = list(CASES[problem.operator]())
    beginning = problem.kernel
    if problem.operator == "depthwise_conv":
        beginning += f"[K={problem.sizes[0]}"
    mine = [case for case in cases if case.name.startswith(beginning)]
    return next((case for case in mine if f"={problem.workload.width}," in case.name), mine[0] if mine else None)


def compiled(problem: Problem, config: LaunchConfig, architecture: int) -> CompiledKernel | str:
    """Return the cost in machine code, or the reason it cannot run."""
    with assume_architecture(architecture):
        case = case_of(problem, config)
    if case is None:
        return "no case to compile"
    try:
        kernel = compile_case(case, architecture)
    except Exception as error:  # whatever a compiler may say about a configuration that nobody has tried
        return f"does not compile: {str(error).splitlines()[-1] if str(error) else type(error).__name__}"
    return f"spills {kernel.spill_bytes} bytes" if kernel.spill_bytes else kernel


def dry_run(operators: list[str]) -> None:
    for operator in operators:
        seen: set[tuple[str, tuple[int, ...]]] = set()
        for problem in problems(operator, torch.device("meta")):
            if (problem.kernel, problem.sizes) in seen:
                continue
            seen.add((problem.kernel, problem.sizes))
            for architecture in GPU_FAMILIES:
                with assume_architecture(architecture):
                    configs = candidates(problem.kernel, *problem.sizes)
                logger.info("%s, size %s, sm_%d:", problem.kernel, problem.sizes, architecture)
                for config in configs:
                    found = compiled(problem, config, architecture)
                    present = " (present)" if config == configs[0] else ""
                    logger.info("  %s%s: %s", config, present, found if isinstance(found, str) else cost(found))


def cost(kernel: CompiledKernel) -> str:
    per_output = kernel.instructions_per_output
    instructions = "" if per_output is None else f", {per_output:.1f} instructions per output"
    return f"{kernel.registers} registers, {kernel.shared_bytes} bytes shared{instructions}"


def measured(problem: Problem, config: LaunchConfig, machine: Machine) -> dict[str, Any]:
    """Return the record of one candidate: its time, or the reason there is none."""
    major, minor = torch.cuda.get_device_capability()
    architecture = 10 * major + minor
    found = compiled(problem, config, architecture) if architecture in ARCHITECTURES else None
    if isinstance(found, str):
        return {"dropped": found}
    workload, direction = problem.workload, problem.workload.directions[problem.direction]
    machine.proven.clear()
    with override_config(problem.kernel, config), dk.use_backend("triton"):
        prove(workload, machine)
        no_gradient = torch.no_grad() if not direction.gradients else nullcontext()
        with timing.stream(machine.device), no_gradient:
            case = Case("target", workload, "fused", problem.direction)
            calls, _ = prepare(case, Rival(workload.function, "triton"), direction.gradients, machine)
            seconds, how = timing.kernel_seconds(calls)
    return {"kernel_us": seconds * 1e6, "kernel_timing": how}


def tune(problem: Problem, machine: Machine) -> list[dict[str, Any]]:
    """Record each candidate, the present choice first."""
    records = []
    for i, config in enumerate(candidates(problem.kernel, *problem.sizes)):
        try:
            record = measured(problem, config, machine)
        except (AssertionError, Unavailable, torch.OutOfMemoryError, RuntimeError) as error:
            record = {"dropped": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        description = {
            "kernel": problem.kernel, "operator": problem.workload.operator, "shape": problem.workload.shape,
            "direction": problem.direction, "sizes": problem.sizes, "config": asdict(config), "present": i == 0,
        }  # fmt: skip
        records.append(description | record | machine.facts)
    return records


def verdict(records: list[dict[str, Any]]) -> str:
    """Name the best of one problem's records beside the present choice."""
    timed = [record for record in records if "kernel_us" in record]
    if not timed:
        return "nothing could be timed: " + "; ".join(sorted({record["dropped"] for record in records}))
    best = min(timed, key=lambda record: record["kernel_us"])
    present = next((record for record in timed if record["present"]), None)
    if best is present:
        return f"the present choice is the best of {len(timed)}: {best['kernel_us']:.2f} us, {best['config']}"
    now = "has no time" if present is None else f"{present['kernel_us']:.2f} us"
    return f"{best['kernel_us']:.2f} us with {best['config']}; the present choice {now}"


def save(records: list[dict[str, Any]], output: Path) -> Path:
    """Write records into the GPU's folder, beside those of other kernels."""
    path = output / slug(records[0]["device"]) / "tuning.json"
    before = json.loads(path.read_text()) if path.exists() else []
    renewed = {(record["kernel"], record["operator"], record["shape"]) for record in records}
    kept = [r for r in before if (r["kernel"], r["operator"], r["shape"]) not in renewed]
    with replacing(path) as temporary:
        temporary.write_text("[\n" + ",\n".join(map(json.dumps, kept + records)) + "\n]\n")
    return path


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time candidates for each kernel's launch configuration.")
    parser.add_argument("operators", nargs="*", metavar="operator", help=f"of {', '.join(OPERATORS)}; default: all")
    parser.add_argument("--dry-run", action="store_true", help="compile the candidates for sm_80 and sm_90, no GPU")
    parser.add_argument("--output", type=Path, default=RESULTS, help="the GPU's folder is made in it")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    operators = options.operators or list(OPERATORS)
    if unknown := sorted(set(operators) - set(OPERATORS)):
        parser.error(f"no operator is called {', '.join(unknown)}; there are {', '.join(OPERATORS)}")
    if not TRITON_INSTALLED:
        parser.error("candidates are compiled by Triton, which is not installed")
    if TRITON_INTERPRETS:
        parser.error("candidates are compiled, which Triton does not do under TRITON_INTERPRET=1")
    if options.dry_run:
        dry_run(operators)
        return
    if not torch.cuda.is_available():
        parser.error("timing needs a GPU that torch can use; --dry-run compiles the candidates without one")
    machine = Machine(torch.device("cuda"), DTYPE)
    for operator in operators:
        for problem in problems(operator, machine.device):
            records = tune(problem, machine)
            path = save(records, options.output)
            logger.info("%s: %s", problem, verdict(records))
    logger.info("times are in %s", path)


if __name__ == "__main__":
    main()
