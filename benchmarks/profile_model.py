"""Profile a forward, kernel by kernel, beside the floor of its parts.

``python -m benchmarks.profile_model dimr-xl-2r --rows 64`` writes ``profile-<model>-<form>-<rows>``, as ``.json`` and
``.md``, into ``benchmarks/results/<device>``. Times are torch.profiler's; on a CPU they are those of its operators.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import dimr
import dimr_kernels as dk
from dimr.utils import replacing

from .measurement import Machine
from .model_floor import Ceilings, by_name, forward_parts
from .model_runs import FORWARDS, forward_of, make_inputs
from .report import RESULTS, slug

CALLS = 5
WARM_UP = 3
# The first match decides; all other kernels are bound by memory.
BOUNDS = (
    ("matmul", r"geglu_linear"),
    ("attention", r"flash|fmha|sdpa|scaled_dot_product|attention"),
    ("vector", r"depthwise|conv2d_c1_k1|dwconv"),
    ("bytes", r"norm|geglu|shuffle"),
    ("matmul", r"gemm|cutlass|nvjet|cublas|addmm|bmm|\bmm\b|wgmma|xmma|convolution|linear"),
)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel in one forward.

    Attributes:
        share: of the forward's time in kernels.
        bound: what its work is bound by at best, judged by its name: "matmul", "attention", "vector" or "bytes".
    """

    name: str
    calls: float
    microseconds: float
    share: float
    bound: str


def bound_of(name: str) -> str:
    return next((bound for bound, pattern in BOUNDS if re.search(pattern, name, re.IGNORECASE)), "bytes")


def kernels_of(call: Callable[[], object], device: torch.device) -> list[Kernel]:
    """Return the kernels of one call, longest first, averaged over a few calls."""
    for _ in range(WARM_UP):
        call()
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as trace:
        for _ in range(CALLS):
            call()
        if on_gpu:
            torch.cuda.synchronize(device)
    times = {
        event.key: (event.count, event.self_device_time_total if on_gpu else event.self_cpu_time_total)
        for event in trace.key_averages()
    }
    total = sum(time for _, time in times.values())
    kernels = [
        Kernel(name, count / CALLS, time / CALLS, time / total, bound_of(name)) for name, (count, time) in times.items()
    ]
    return sorted((k for k in kernels if k.microseconds > 0), key=lambda k: -k.microseconds)


def profiled(
    model: str, config: dimr.DiMRConfig, form: str, rows: int, machine: Machine, compiler: str = "inductor"
) -> dict[str, Any]:
    """Return the record of one forward, ready for JSON."""
    chosen = next(f for f in FORWARDS if f.name == form)
    inputs = make_inputs(config, rows, machine.device)
    with dk.use_backend(chosen.backend):
        forward = forward_of(config, chosen, machine.device, machine.dtype, compiler)
        kernels = kernels_of(lambda: forward(*inputs), machine.device)
    ceilings = Ceilings(machine.copy_bandwidth, machine.matmul_flops)
    floor = by_name(forward_parts(config, rows, machine.dtype.itemsize), ceilings)
    return {
        "model": model,
        "form": form,
        "rows": rows,
        "dtype": str(machine.dtype).removeprefix("torch."),
        **machine.facts,
        "kernel_us": sum(k.microseconds for k in kernels),
        "floor_us": 1e6 * sum(floor.values()),
        "floor_of_parts_us": {name: 1e6 * seconds for name, seconds in floor.items()},
        "kernels": [dataclasses.asdict(k) for k in kernels],
    }


def markdown(record: dict[str, Any], most: int = 40) -> str:
    lines = [
        f"# {record['model']}, {record['form']}: one forward of {record['rows']} rows",
        "",
        f"{record['device']}, {record['dtype']}, torch {record['torch']}. In kernels {record['kernel_us']:.0f} us; the "
        f"floor of the parts below is {record['floor_us']:.0f} us.",
        "",
    ]
    parts = record["floor_of_parts_us"].items()
    lines += _table(("part", "floor, us"), ((name, f"{us:.1f}") for name, us in parts))
    kernels = record["kernels"]
    rows = (
        (f"`{k['name'][:100]}`", f"{k['calls']:g}", f"{k['microseconds']:.1f}", f"{k['share']:.1%}", k["bound"])
        for k in kernels[:most]
    )
    lines += _table(("kernel", "calls", "us", "share", "bound by"), rows)
    if len(kernels) > most:
        rest = sum(k["microseconds"] for k in kernels[most:])
        lines += [f"{len(kernels) - most} more kernels take {rest:.1f} us together."]
    return "\n".join(lines) + "\n"


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    cells = [columns, ("---",) * len(columns), *rows]
    return [*("| " + " | ".join(row) + " |" for row in cells), ""]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Profile one forward of a model.")
    parser.add_argument("model", choices=dimr.list_models())
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--form", choices=[f.name for f in FORWARDS], default="engine")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the devices' folders")
    options = parser.parse_args(arguments)
    if options.rows < 1:
        parser.error(f"--rows must be at least 1, got {options.rows}")
    on_gpu = torch.cuda.is_available()
    machine = Machine(torch.device("cuda" if on_gpu else "cpu"), torch.bfloat16 if on_gpu else torch.float32)
    record = profiled(options.model, dimr.model_config(options.model), options.form, options.rows, machine)
    name = f"profile-{options.model}-{options.form.replace(' ', '-')}-{options.rows}"
    folder = options.output / slug(record["device"])
    for suffix, text in ((".json", json.dumps(record, indent=1) + "\n"), (".md", markdown(record))):
        with replacing(folder / (name + suffix)) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
