"""Stateless operators. Each checks its arguments, then runs its fused form or its eager definition (``dispatch``)."""

from .ops.attention import attention
from .ops.depthwise_conv import depthwise_conv2d
from .ops.geglu import geglu, geglu_linear
from .ops.linear import apply_linear, linear
from .ops.pixel_shuffle import pixel_shuffle_add, pixel_unshuffle
from .ops.td_group_norm import td_group_norm
from .ops.td_norm import td_layer_norm, td_rms_norm
from .ops.upsample import pixel_shuffle_td_norm_add

__all__ = [
    "apply_linear",
    "attention",
    "depthwise_conv2d",
    "geglu",
    "geglu_linear",
    "linear",
    "pixel_shuffle_add",
    "pixel_shuffle_td_norm_add",
    "pixel_unshuffle",
    "td_group_norm",
    "td_layer_norm",
    "td_rms_norm",
]
