"""Examples in docstrings run, and the most used functions and classes have one."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import dimr
import dimr_kernels as dk

ROOT = Path(__file__).parents[1]
FINDER = doctest.DocTestFinder()


def found() -> list[doctest.DocTest]:
    tests = []
    for path in sorted(path for name in ("dimr_kernels", "dimr") for path in (ROOT / name).rglob("*.py")):
        if ">>>" in path.read_text(encoding="utf-8"):
            module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
            tests += [test for test in FINDER.find(module) if test.examples]
    return tests


FOUND = found()


@pytest.mark.parametrize("test", FOUND, ids=lambda test: test.name)
def test_example(test):
    if "import timm" in test.docstring:
        pytest.importorskip("timm")
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    result = runner.run(test, out=said.append)
    assert result.failed == 0, "".join(said)


NAMES = [
    *(f"dimr_kernels.functional.{name}" for name in dk.functional.__all__),
    *(f"dimr_kernels.{name}" for name in dk.nn.__all__),
    *(f"dimr_kernels.{name}" for name in ("use_backend", "time_conditioning", "warmup", "pad_head_dim", "adopt")),
    *(f"dimr.{name}" for name in ("create_model", "sample", "multi_scale_loss", "Guidance", "NoiseSchedule")),
    *(f"dimr.{name}" for name in ("optimize_for_inference", "count_parameters", "count_macs", "save_model")),
]


@pytest.mark.parametrize("name", NAMES)
def test_has_an_example(name):
    place = dimr if name.startswith("dimr.") else dk
    for part in name.split(".")[1:]:
        place = getattr(place, part)
    assert ">>>" in (place.__doc__ or ""), f"{name} has no example in its docstring"
