"""Former module paths, so that pickles written with an earlier layout still load."""

from __future__ import annotations

import sys
from importlib import import_module

MOVED = {
    "dimr_kernels.adoption.ada_blocks": "dimr_kernels.adoption.ada_norm",
    "dimr_kernels.adoption.depthwise": "dimr_kernels.adoption.rules",
    "dimr_kernels.adoption.geglu": "dimr_kernels.adoption.rules",
    "dimr_kernels.adoption.layer_norm": "dimr_kernels.adoption.rules",
    "dimr_kernels.adoption.pixel_shuffle": "dimr_kernels.adoption.swap",
    "dimr_kernels.ops.attention.module": "dimr_kernels.ops.attention",
    "dimr_kernels.ops.depthwise_conv.module": "dimr_kernels.ops.depthwise_conv",
    "dimr_kernels.ops.geglu_linear.module": "dimr_kernels.ops.geglu",
    "dimr_kernels.ops.shuffle_norm_add.module": "dimr_kernels.ops.upsample",
    "dimr_kernels.ops.td_group_norm.module": "dimr_kernels.ops.td_group_norm",
    "dimr_kernels.ops.td_norm.module": "dimr_kernels.ops.td_norm",
}


def register_aliases() -> None:
    for former, present in MOVED.items():
        sys.modules.setdefault(former, import_module(present))
