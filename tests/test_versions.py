"""The matrix of versions: its cells cover what pyproject.toml promises, and the page shows what was recorded."""

from __future__ import annotations

import json
import re

import pytest

from . import versions
from .versions import BEGIN, CELLS, END, PAGE, RESULTS, ROOT

RECORDED = json.loads(RESULTS.read_text())


def test_the_page_shows_the_record():
    assert PAGE.read_text().split(BEGIN)[1].split(END)[0] == versions.table(RECORDED)


def test_every_recorded_cell_is_defined_and_was_asked_for():
    for name, result in RECORDED.items():
        cell, found = CELLS[name], result["versions"]
        assert found["python"].startswith(cell.python + ".")
        for pin in (*cell.pins, *cell.overrides):
            library, _, version = pin.partition("==")
            assert not version or found[library].partition("+")[0] == version, name


@pytest.mark.parametrize(("cell", "library"), [("oldest", "torch"), ("oldest", "diffusers"), ("oldest", "triton")])
def test_the_oldest_versions_promised_were_run(cell, library):
    bound = re.search(rf'"{library}>=([\d.]+)', (ROOT / "pyproject.toml").read_text())
    assert bound is not None
    assert RECORDED[cell]["versions"][library].startswith(bound[1] + ".")
    assert RECORDED[cell]["versions"]["python"].startswith("3.10.")


def test_ci_tests_the_operators_with_the_oldest_torch_and_the_newest():
    step = (ROOT / ".ci" / "run").read_text().partition("for torch in ")[2].partition("done")[0]
    oldest, newest = (CELLS[name].pins[0].partition("==")[2] for name in ("oldest", "newest"))
    assert step.partition(";")[0].split() == [oldest, newest]
    names = [name for listed in re.findall(r"test_\{([\w,]+)\}\.py", step) for name in listed.split(",")]
    assert names == list(versions.OPERATORS)


def test_every_python_promised_was_run():
    promised = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    assert set(promised) == {".".join(result["versions"]["python"].split(".")[:2]) for result in RECORDED.values()}


def test_a_failed_check_shows_in_the_table():
    result = {"versions": {"torch": "2.10.0"}, "checks": {"operators": "3 passed"}, "failures": {"demo": ["demo", "x"]}}
    assert versions.table({"oldest": result}).splitlines()[-1] == (
        "| oldest |  | 2.10.0 |  |  |  | 3 passed | **failed** | **failed** |"
    )


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("...\n= 3 passed, 1 skipped, 4 deselected, 2 warnings in 3.1s =", "3 passed, 1 skipped"),
        ("loss 0.5633\n", "loss 0.5633"),
    ],
)
def test_summary(output, expected):
    assert versions.summary(output) == expected
