"""Table of models in the README and the documentation, against the code's counts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import dimr

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODELS = re.findall(r"\| `(dimr-\S+)` \|(?: [^|]* \|)? (\S+) M \| (\S+) G \|", README)


def test_every_published_model_is_there():
    small = {"dimr-tiny-3r", "dimr-small-3r"}
    assert {name for name, *_ in MODELS} == set(dimr.list_models()) - small


@pytest.mark.parametrize("row", MODELS, ids=lambda row: row[0])
def test_table_of_models(row):
    name, parameters, multiply_adds = row
    with torch.device("meta"):
        model = dimr.create_model(name)
    assert f"{dimr.count_parameters(model) / 1e6:.2f}" == parameters
    assert f"{dimr.count_macs(model) / 1e9:.1f}" == multiply_adds
    assert f"| {parameters} M | {multiply_adds} G |" in (ROOT / "docs" / "model.md").read_text(encoding="utf-8")
