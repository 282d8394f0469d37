"""Scripts under examples/ run, each in its own process, and show what their docstring says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

# torchvision, which timm and diffusers may import, has to fit the torch that is here.
START = """
import runpy, sys
from tests.support.torchvision_operators import declare_missing_operators
declare_missing_operators()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

RUNS = {
    "td_norm_in_a_vit": ("", ["--steps", "2", "--width", "16"]),
    "geglu_in_diffusers": ("diffusers", ["--size", "8"]),
    "depthwise_in_convnext": ("timm", ["--size", "32"]),
    "sample_dimr": ("PIL", ["--steps", "3"]),
}


def run(name: str, folder: Path) -> str:
    needs, arguments = RUNS[name]
    if needs and find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    command = [sys.executable, "-c", START, str(ROOT / "examples" / f"{name}.py"), *arguments, "--device", "cpu"]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_td_norm_in_a_vit(tmp_path):
    out = run("td_norm_in_a_vit", tmp_path)
    first = re.findall(r"^(\w+) +loss at the first step (\S+),", out, flags=re.MULTILINE)
    assert [name for name, _ in first] == ["LayerNorm", "TDLayerNorm"]
    assert first[0][1] == first[1][1]
    (moved,) = re.findall(r"up to (\S+) apart", out)
    assert float(moved) > 0


@pytest.mark.slow
def test_geglu_in_diffusers(tmp_path):
    out = run("geglu_in_diffusers", tmp_path)
    assert re.search(r"swapped +7 x diffusers GEGLU", out)
    assert "relative to the largest output: " in out
    assert "not timed: on a cpu" in out


@pytest.mark.slow
def test_depthwise_in_convnext(tmp_path):
    out = run("depthwise_in_convnext", tmp_path)
    assert re.search(r"swapped +12 x nn.Conv2d 7x7 depthwise", out)
    assert re.findall(r"^(\w+): relative difference ", out, flags=re.MULTILINE) == ["output", "gradient"]
    assert "undone: the same output as before, True" in out


@pytest.mark.slow
def test_sample_dimr(tmp_path):
    out = run("sample_dimr", tmp_path)
    (difference,) = re.findall(r"relative difference of the two: (\S+)", out)
    assert 0 < float(difference) < 0.05
    from PIL import Image

    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 3 * picture.height


def test_every_example_is_run_and_short():
    assert {path.stem for path in EXAMPLES} == set(RUNS)
    for path in EXAMPLES:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) < 100, f"{path.name} has {len(lines)} lines"
        assert lines[0].startswith('"""')
        assert any(f"python examples/{path.name}" in line for line in lines[:12]), (
            f"{path.name} does not say how to run it"
        )
