"""Counts of parameters and multiply-adds, made without allocating weights."""

from __future__ import annotations

import torch
from torch import nn

import dimr_kernels as dk

from .config import DiMRConfig
from .network import DiMR, without_weights


def count_parameters(model: nn.Module | DiMRConfig) -> int:
    """Count the parameters of a model, or of the model that a configuration describes.

    Example:
        >>> import dimr
        >>> count_parameters(dimr.model_config("dimr-xl-2r"))
        505046408
    """
    if isinstance(model, DiMRConfig):
        model = without_weights(model)
    return sum(p.numel() for p in model.parameters())


def count_macs(model: DiMR | DiMRConfig) -> int:
    """Count the multiply-adds of one forward of one image without guidance.

    These are the paper's "Gflops": matrix products, convolutions and attention. Norms,
    activations and additions are not counted.

    Example:
        >>> import dimr
        >>> round(count_macs(dimr.model_config("dimr-tiny-3r")) / 1e6)
        19
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton

    config = model if isinstance(model, DiMRConfig) else model.config
    meta = without_weights(config)
    x = torch.empty(1, config.in_channels, config.input_size, config.input_size, device="meta")
    labels = torch.zeros(1, dtype=torch.int64, device="meta")
    with torch.no_grad(), dk.use_backend("eager"), FlopCounterMode(display=False) as counter:
        meta(x, 500.0, labels)
    return counter.get_total_flops() // 2
