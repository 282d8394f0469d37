"""The machine code of every kernel configuration of an operator, compiled here for architectures nobody has here."""

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
    """Rows of ``python -m dimr_kernels.static_analysis OPERATOR``, run once per session.

    A process of its own, because this one may hold the interpreter's kernels, which cannot be compiled.
    """
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "dimr_kernels.static_analysis", operator]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_lean(operator: str, *, registers: int = 255, narrow_stores: tuple[str, ...] = ()) -> None:
    """No spill, 16-byte loads and stores, and at most this many registers, in every configuration.

    ``narrow_stores``: kernels (beginnings of names) that write a few numbers, of whatever width.
    """
    rows = compiled_kernels(operator)
    assert {row["architecture"] for row in rows} == {80, 90}
    for row in rows:
        where = f"{row['name']} sm_{row['architecture']}"
        assert row["spill_bytes"] == 0, f"{where}: {row['spill_bytes']} bytes spilled"
        assert row["registers"] <= registers, f"{where}: {row['registers']} registers"
        assert "16" in row["loads"], f"{where}: no 16-byte load, only {row['loads']}"
        assert row["name"].startswith(narrow_stores) or "16" in row["stores"], (
            f"{where}: no 16-byte store, only {row['stores']}"
        )
