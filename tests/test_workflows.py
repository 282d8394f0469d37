"""The workflow files: whole, pinned, and made of commands that exist here."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
yaml = pytest.importorskip("yaml")

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
PROGRAMS = {"pip", "ruff", "mypy", "mkdocs", "pytest", *PROJECT["scripts"]}


def steps(path: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


def commands(path: Path) -> list[str]:
    return [line for step in steps(path) if "run" in step for line in step["run"].splitlines()]


def extras_in(text: str) -> set[str]:
    return {extra for group in re.findall(r"\.\[([\w,]+)\]", text) for extra in group.split(",")}


def test_names():
    assert {path.stem for path in WORKFLOWS} == {"docs", "lint", "tests", "wheels"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_by_major_version(path):
    used = [step["uses"] for step in steps(path) if "uses" in step]
    assert used
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in used), used


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_commands_exist(path):
    for command in commands(path):
        program, *arguments = shlex.split(command)
        if program == "python":
            assert arguments[0] == "-m"
            assert importlib.util.find_spec(arguments[1]), f"there is no module {arguments[1]}"
        else:
            assert program in PROGRAMS or (ROOT / program).is_file(), f"there is no {program}"
        assert extras_in(command) <= set(EXTRAS), command


def test_the_same_checks_as_locally():
    local = {line for line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines() if line}
    assert {"ruff check .", "ruff format --check .", "mypy"} <= local & set(
        commands(ROOT / ".github/workflows/lint.yml")
    )
    assert any(line.startswith("mkdocs build --strict") for line in local)
    assert extras_in("\n".join(local)) <= set(EXTRAS)


def test_every_python_version_that_is_promised():
    promised = {name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)}
    for name, job in (("tests", "cpu"), ("wheels", "wheel")):
        jobs = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8"))["jobs"]
        assert set(jobs[job]["strategy"]["matrix"]["python-version"]) == promised


def test_docs_workflow_installs_the_docs_extra():
    wanted = " ".join(f'"{requirement}"' for requirement in EXTRAS["docs"])
    assert f"pip install {wanted}" in commands(ROOT / ".github" / "workflows" / "docs.yml")


def test_extras_that_errors_name_exist():
    """``require(module, extra, purpose)`` tells a user what to install."""
    for path in (ROOT / "dimr").rglob("*.py"):
        for module, extra in re.findall(r'require\("([\w.]+)", "(\w+)"', path.read_text(encoding="utf-8")):
            assert extra in EXTRAS, f"{path.name}: {module} is said to come with {extra!r}, which is no extra"
