"""The README's Python runs as it stands there, and its table of models is what the code counts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import dimr

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_there_are_examples():
    assert len(EXAMPLES) == 2


@pytest.mark.parametrize("code", EXAMPLES, ids=["operator", "model"])
def test_example(code):
    exec(compile(code, str(README), "exec"), {})


@pytest.mark.parametrize("row", re.findall(r"\| `(dimr-\S+)` \| (\S+) M \| (\S+) G \|", README.read_text()))
def test_table_of_models(row):
    name, parameters, multiply_adds = row
    with torch.device("meta"):
        model = dimr.create_model(name)
    assert f"{dimr.count_parameters(model) / 1e6:.2f}" == parameters
    assert f"{dimr.count_macs(model) / 1e9:.1f}" == multiply_adds
