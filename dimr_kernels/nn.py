"""The operators as modules."""

from .ops.attention import SelfAttention
from .ops.depthwise_conv import DepthwiseConv2d
from .ops.geglu import GEGLU, GEGLUMLP
from .ops.td_group_norm import TDGroupNorm
from .ops.td_norm import TDLayerNorm, TDRMSNorm
from .ops.upsample import PixelShuffleUpsample

__all__ = [
    "GEGLU",
    "GEGLUMLP",
    "DepthwiseConv2d",
    "PixelShuffleUpsample",
    "SelfAttention",
    "TDGroupNorm",
    "TDLayerNorm",
    "TDRMSNorm",
]
