"""Time the launch configurations that each kernel's table offers, so that a person can choose its rows.

``python -m benchmarks.tune [operator ...]`` on a GPU: at the target shapes, every candidate is compiled (what spills
drops out), held to the eager definition in float64, and timed under a CUDA graph on a cold cache. The times go into
``benchmarks/results/<gpu>/tuning.json``; the best is printed beside the present choice. Tables are edited by hand.

``--dry-run`` needs no GPU: it lists the candidates with what their machine code costs, for both architectures.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import dimr_kernels as dk
from dimr.files import replacing
from dimr_kernels.dispatch import TRITON_INSTALLED, TRITON_INTERPRETS
from dimr_kernels.launch import KernelCase
from dimr_kernels.ops.configurations import Table, assume_architecture, forced
from dimr_kernels.static_analysis import ARCHITECTURES, OPERATORS, CompiledKernel, compile_case

from . import timing
from .measurement import Case, Machine, prepare, prove
from .report import RESULTS, slug
from .rivals import Unavailable
from .workload import Rival, Workload

logger = logging.getLogger(__name__)

DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Problem:
    """One table at one shape: what is timed is the direction in which its kernel runs."""

    operator: str
    table: Table[Any]
    size: int
    """That the table is read by."""
    workload: Workload
    direction: str

    def __str__(self) -> str:
        return f"{self.table.kernel} for {self.workload.operator} {self.workload.shape} {self.direction}"


def problems(operator: str, device: torch.device) -> Iterator[Problem]:
    """At every target shape, the tables that its kernels read."""
    benchmark = importlib.import_module(f"benchmarks.test_{operator}")
    for shape in benchmark.SHAPES.target:
        workload = benchmark.workload(shape, DTYPE, device)
        for table, direction, size in tables_for(operator, shape):
            yield Problem(operator, table, size, workload, direction)


def tables_for(operator: str, shape: Any) -> list[tuple[Table[Any], str, int]]:
    """Table, the direction in which its kernel runs, and the size it is read by."""
    kernels = importlib.import_module(f"dimr_kernels.ops.{operator}.triton")
    if operator == "depthwise_conv":
        K = shape.kernel_size
        return [(kernels.FORWARD[K], "forward", shape.side), (kernels.WEIGHT[K], "weight_gradient", shape.side)]
    if operator == "geglu_linear":
        return [(kernels.FORWARD, "forward", shape.hidden)]
    tables = kernels.TABLES
    if operator == "td_norm":
        tables = [table for table in tables if kernels.reads(table, shape.width)]
    return [(table, "forward" if "_fwd" in table.kernel else "backward", shape.width) for table in tables]


def case_of(problem: Problem, config: Any) -> KernelCase | None:
    """The kernel with this configuration, at the problem's size where the size is part of its name."""
    with forced(problem.table.kernel, config):
        cases = list(importlib.import_module(f"dimr_kernels.ops.{problem.operator}.triton").cases())
    mine = [case for case in cases if case.name.startswith(problem.table.kernel.rstrip("]"))]
    return next((case for case in mine if f"={problem.workload.width}," in case.name), mine[0] if mine else None)


def compiled(problem: Problem, config: Any, architecture: int) -> CompiledKernel | str:
    """What its machine code costs, or why it cannot run."""
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
        seen: set[tuple[str, int]] = set()
        for problem in problems(operator, torch.device("meta")):
            if (problem.table.kernel, problem.size) in seen:
                continue
            seen.add((problem.table.kernel, problem.size))
            for architecture in ARCHITECTURES:
                with assume_architecture(architecture):
                    candidates = problem.table.candidates(problem.size)
                logger.info("%s, size %d, sm_%d:", problem.table.kernel, problem.size, architecture)
                for config in candidates:
                    found = compiled(problem, config, architecture)
                    present = " (present)" if config == candidates[0] else ""
                    logger.info("  %s%s: %s", config, present, found if isinstance(found, str) else cost(found))


def cost(kernel: CompiledKernel) -> str:
    per_output = kernel.instructions_per_output
    instructions = "" if per_output is None else f", {per_output:.1f} instructions per output"
    return f"{kernel.registers} registers, {kernel.shared_bytes} bytes shared{instructions}"


def measured(problem: Problem, config: Any, machine: Machine) -> dict[str, Any]:
    """The record of one candidate: its time, or why there is none."""
    major, minor = torch.cuda.get_device_capability()
    architecture = 10 * major + minor
    found = compiled(problem, config, architecture) if architecture in ARCHITECTURES else None
    if isinstance(found, str):
        return {"dropped": found}
    workload, direction = problem.workload, problem.workload.directions[problem.direction]
    machine.proven.clear()
    with forced(problem.table.kernel, config), dk.use_backend("triton"):
        prove(workload, machine)
        no_gradient = torch.no_grad() if not direction.gradients else nullcontext()
        with timing.stream(machine.device), no_gradient:
            case = Case("target", workload, "fused", problem.direction)
            calls, _ = prepare(case, Rival(workload.function, "triton"), direction.gradients, machine)
            seconds, how = timing.kernel_seconds(calls)
    return {"kernel_us": seconds * 1e6, "kernel_timing": how}


def tune(problem: Problem, machine: Machine) -> list[dict[str, Any]]:
    """A record for each candidate, the present choice first."""
    records = []
    for i, config in enumerate(problem.table.candidates(problem.size)):
        try:
            record = measured(problem, config, machine)
        except (AssertionError, Unavailable, torch.OutOfMemoryError, RuntimeError) as error:
            record = {"dropped": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        description = {
            "kernel": problem.table.kernel, "operator": problem.workload.operator, "shape": problem.workload.shape,
            "direction": problem.direction, "size": problem.size, "config": asdict(config), "present": i == 0,
        }  # fmt: skip
        records.append(description | record | machine.facts)
    return records


def verdict(records: list[dict[str, Any]]) -> str:
    """The best of one problem's records beside the present choice."""
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
    """Into the folder of the GPU, beside what is there about other kernels."""
    path = output / slug(records[0]["device"]) / "tuning.json"
    before = json.loads(path.read_text()) if path.exists() else []
    renewed = {(record["kernel"], record["operator"], record["shape"]) for record in records}
    kept = [r for r in before if (r["kernel"], r["operator"], r["shape"]) not in renewed]
    with replacing(path) as temporary:
        temporary.write_text("[\n" + ",\n".join(map(json.dumps, kept + records)) + "\n]\n")
    return path


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Time the launch configurations that each kernel's table offers.")
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
