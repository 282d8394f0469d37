"""Stateless operators. Each checks its arguments, then runs its fused form or its eager definition (``dispatch``)."""

from .ops.attention.functional import attention
from .ops.depthwise_conv.functional import depthwise_conv2d
from .ops.geglu.functional import geglu
from .ops.geglu_linear.functional import geglu_linear
from .ops.pixel_shuffle.functional import pixel_shuffle_add, pixel_unshuffle
from .ops.shuffle_norm_add.functional import pixel_shuffle_td_norm_add
from .ops.td_group_norm.functional import td_group_norm
from .ops.td_norm.functional import td_layer_norm, td_rms_norm

__all__ = [
    "attention",
    "depthwise_conv2d",
    "geglu",
    "geglu_linear",
    "pixel_shuffle_add",
    "pixel_shuffle_td_norm_add",
    "pixel_unshuffle",
    "td_group_norm",
    "td_layer_norm",
    "td_rms_norm",
]
