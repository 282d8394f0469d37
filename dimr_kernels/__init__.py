"""Fused operators for diffusion models: Triton and CUDA on a GPU, plain PyTorch everywhere else."""

from . import functional
from .conditioning import time_conditioning
from .dispatch import BackendError, current_backend, use_backend
from .nn import GEGLU, GEGLUMLP, DepthwiseConv2d, PixelShuffleUpsample
from .norms import TDLayerNorm, TDRMSNorm

__version__ = "0.1.0"

__all__ = [
    "GEGLU",
    "GEGLUMLP",
    "BackendError",
    "DepthwiseConv2d",
    "PixelShuffleUpsample",
    "TDLayerNorm",
    "TDRMSNorm",
    "current_backend",
    "functional",
    "time_conditioning",
    "use_backend",
]
