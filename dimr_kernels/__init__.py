"""Fused operators for diffusion models: Triton and CUDA on a GPU, plain PyTorch everywhere else."""

from . import functional, inference
from ._pickle_aliases import register_aliases
from .adoption import AdoptionReport, adopt
from .dispatch import BackendError, current_backend, use_backend
from .nn import (
    GEGLU,
    GEGLUMLP,
    DepthwiseConv2d,
    PixelShuffleUpsample,
    SelfAttention,
    TDGroupNorm,
    TDLayerNorm,
    TDRMSNorm,
)
from .ops.attention import pad_head_dim, padded_head_dim, unpad_head_dim
from .ops.time_gate import time_conditioning
from .warmup import warmup

__version__ = "0.1.0"

register_aliases()

__all__ = [
    "GEGLU",
    "GEGLUMLP",
    "AdoptionReport",
    "BackendError",
    "DepthwiseConv2d",
    "PixelShuffleUpsample",
    "SelfAttention",
    "TDGroupNorm",
    "TDLayerNorm",
    "TDRMSNorm",
    "adopt",
    "current_backend",
    "functional",
    "inference",
    "pad_head_dim",
    "padded_head_dim",
    "time_conditioning",
    "unpad_head_dim",
    "use_backend",
    "warmup",
]
