"""Synthetic records for tests of the report; no figure here was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

GPU = {"device": "NVIDIA H100 80GB HBM3", "architecture": "sm_90", "cuda": "13.0", "triton": "3.6.0"}
CPU = {"device": "Some CPU (R) @ 2.0 GHz", "architecture": "cpu", "dtype": "float32"}


def values(us: float = 100.0, on: dict[str, Any] = GPU, **changes: Any) -> dict[str, Any]:
    """Return a synthetic ``extra_info``: 150 MB in ``us`` microseconds on a machine that copies 3000 GB/s."""
    moved = 150_000_000
    record = {
        "operator": "td_layer_norm", "direction": "forward", "implementation": "fused", "shape": "64 x 257 x 960",
        "batch": 64, "width": 960, "scope": "target", "dtype": "bfloat16", "bytes": moved, "flops": 0,
        "wall_us": us + 20, "host_us": 15.0, "gigabytes_per_second": moved / us / 1e3,
        "fraction_of_copy": moved / us / 1e3 / 3000, "copy_gigabytes_per_second": 3000.0,
        "relative_error_float64": 0.002, "torch": "2.11.0", "python": "3.12.1",
    }  # fmt: skip
    if on is GPU:
        record |= {"kernel_us": us, "peak_memory_bytes": 75_000_000}
    return record | on | changes


def write_run(path: Path, *records: dict[str, Any]) -> Path:
    """Write the parts of ``pytest --benchmark-json``'s output that the report reads."""
    benchmarks = [{"name": f"test_{i}", "extra_info": record} for i, record in enumerate(records)]
    path.write_text(json.dumps({"machine_info": {}, "benchmarks": benchmarks}))
    return path
