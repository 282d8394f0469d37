"""Machine code of every kernel configuration of an operator, compiled without its GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from typing import Any

import pytest


@cache
def compiled_kernels(operator: str) -> list[dict[str, Any]]:
    """Return the rows of ``python -m benchmarks.machine_code.compile OPERATOR``, run once per session.

    A process of its own, because this one may hold the interpreter's kernels, which cannot be compiled.
    """
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "benchmarks.machine_code.compile", operator]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]
