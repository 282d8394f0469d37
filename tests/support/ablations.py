"""The paper's ablations at a size that a CPU runs in milliseconds."""

from __future__ import annotations

import dataclasses

import dimr
from dimr.model.variants import ABLATIONS

SMALL = {"in_channels": 1, "input_size": 8, "num_classes": 3, "unconditional_class": True, "kernel_size": 3}


def small_config(name: str, **fields) -> dimr.DiMRConfig:
    """Return the named ablation's configuration, with ``fields`` replaced."""
    config = ABLATIONS[name].config
    branches = config.num_branches
    return dataclasses.replace(
        config, dims=(16, 8, 4)[:branches], layers=(3, 2, 1)[:branches], num_heads=2, **(SMALL | fields)
    )
