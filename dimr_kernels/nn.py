"""The operators as modules."""

from .ops.attention.module import SelfAttention
from .ops.depthwise_conv.module import DepthwiseConv2d
from .ops.geglu_linear.module import GEGLU, GEGLUMLP
from .ops.shuffle_norm_add.module import PixelShuffleUpsample
from .ops.td_group_norm.module import TDGroupNorm
from .ops.td_norm.module import TDLayerNorm, TDRMSNorm

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
