"""What an engine is made of, and what of it could not be had here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

import dimr_kernels as dk
from dimr_kernels.environment import implementation_of

if TYPE_CHECKING:
    from .engine import InferenceEngine


def describe(engine: InferenceEngine) -> dict[str, Any]:
    """Plain values, fit for JSON.

    ``packed``: what was done to the weights. ``operators``: the implementation that each takes in this place.
    ``not_fused``: parts that run otherwise than they could, each with its reason; empty where nothing is missing.
    ``cuda_graph``: "on" or the reason why not. ``memory``: see :meth:`InferenceEngine.memory`.
    """
    operators = {name: implementation_of(name, engine.device) for name in _operators(engine)}
    missing = {name: f"{chosen}, because {why}" for name, (chosen, why) in operators.items() if why}
    if engine.graph_status != "on":
        missing["CUDA graph"] = engine.graph_status
    return {
        "dtype": str(engine.dtype).removeprefix("torch."),
        "device": str(engine.device),
        "packed": _packed(engine),
        "operators": {name: chosen for name, (chosen, _) in operators.items()},
        "not_fused": missing,
        "cuda_graph": engine.graph_status,
        "memory": engine.memory(),
    }


def _operators(engine: InferenceEngine) -> list[str]:
    names = ["attention", "geglu_linear", "td_layer_norm"]
    if engine.config.norm == "td_rms":
        names.append("td_rms_norm")
    if engine.config.num_branches > 1:
        names += ["depthwise_conv2d", "pixel_shuffle_td_norm_add"]
    return names


def _packed(engine: InferenceEngine) -> dict[str, Any]:
    config = engine.config
    head_dim = config.dims[0] // config.num_heads
    padded = head_dim if engine.dtype == torch.float32 else dk.padded_head_dim(head_dim)
    return {
        "head_dim": {"model": head_dim, "engine": padded},
        "slots": [blocks + 1 for blocks in config.blocks],
        "concatenations": 0,
    }
