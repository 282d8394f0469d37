"""Pickles written when a class was defined in another module."""

from __future__ import annotations

import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dimr_kernels as dk
from dimr_kernels._pickle_aliases import MOVED
from dimr_kernels.adoption import ada_norm, rules, swap

FORMER = {
    "dimr_kernels.adoption.ada_blocks": {
        "FittedTDLayerNorm": ada_norm.FittedTDLayerNorm,
        "TimedModel": ada_norm.TimedModel,
        "TDBlock": ada_norm.TDBlock,
        "TDDiffusersBlock": ada_norm.TDDiffusersBlock,
    },
    "dimr_kernels.adoption.depthwise": {
        "DepthwiseConvolution": rules.DepthwiseConvolution,
        "inputs_to_channels_last": rules.inputs_to_channels_last,
    },
    "dimr_kernels.adoption.geglu": {"GatedProjection": rules.GatedProjection, "GatedMLP": rules.GatedMLP},
    "dimr_kernels.adoption.layer_norm": {"LayerNorm": rules.LayerNorm},
    "dimr_kernels.adoption.pixel_shuffle": {"ShuffleAndAdd": swap.ShuffleAndAdd},
    "dimr_kernels.adoption.swap": {"_new": swap._new},
    "dimr_kernels.ops.attention.module": {"SelfAttention": dk.SelfAttention},
    "dimr_kernels.ops.depthwise_conv.module": {"DepthwiseConv2d": dk.DepthwiseConv2d},
    "dimr_kernels.ops.geglu_linear.module": {"GEGLU": dk.GEGLU, "GEGLUMLP": dk.GEGLUMLP},
    "dimr_kernels.ops.shuffle_norm_add.module": {"PixelShuffleUpsample": dk.PixelShuffleUpsample},
    "dimr_kernels.ops.td_group_norm.module": {"TDGroupNorm": dk.TDGroupNorm},
    "dimr_kernels.ops.td_norm.module": {"TDLayerNorm": dk.TDLayerNorm, "TDRMSNorm": dk.TDRMSNorm},
}


def test_every_moved_module_is_here():
    assert MOVED.keys() <= FORMER.keys()


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, objects in FORMER.items() for name in objects])
def test_a_former_name_is_found(module, name):
    assert pickle.loads(f"c{module}\n{name}\n.".encode()) is FORMER[module][name]


def written_before(model: nn.Module, *names: str) -> bytes:
    """Pickle in the text protocol, with the former modules of these names in place of the present ones."""
    written = pickle.dumps(model, protocol=0)
    for former, objects in FORMER.items():
        for name in names:
            if name in objects:
                present = f"c{objects[name].__module__}\n{name}\n".encode()
                assert present in written
                written = written.replace(present, f"c{former}\n{name}\n".encode())
    return written


def test_an_adopted_model():
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Flatten(2), nn.LayerNorm(20))
    dk.adopt(model, channels_last=True, layer_norm=True)
    x = torch.randn(2, 8, 4, 5)
    written = written_before(model, "DepthwiseConvolution", "inputs_to_channels_last", "LayerNorm")
    read = pickle.loads(written)
    assert [type(module) for module in read.modules()] == [type(module) for module in model.modules()]
    assert torch.equal(read(x), model(x))
    assert dk.adopt(read, channels_last=True, layer_norm=True).swapped == []


def test_time_dependent_norms():
    model = nn.ModuleList((dk.TDLayerNorm(8), dk.TDRMSNorm(8), dk.TDGroupNorm(2, 8), dk.PixelShuffleUpsample(8, 4)))
    read = pickle.loads(written_before(model, "TDLayerNorm", "TDRMSNorm", "TDGroupNorm", "PixelShuffleUpsample"))
    x, y = torch.randn(2, 3, 3, 8), torch.randn(2, 6, 6, 4)
    for module, same in zip(model[:3], read[:3], strict=True):
        assert type(same) is type(module)
        assert torch.equal(same(x, 0.3), module(x, 0.3))
    assert torch.equal(read[3](x, y, 0.3), model[3](x, y, 0.3))


class Upsample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.shuffle = nn.Conv2d(4, 16, 1), nn.PixelShuffle(2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.shuffle(self.conv(x)) + y


def test_a_model_whose_pixel_shuffle_was_adopted():
    """Run the model's own forward, which computes the same: pixel shuffles are no longer adopted."""
    model = Upsample()
    inputs = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 6, 10)
    wanted = model(*inputs)
    model.__class__ = swap.adopted_class(swap.ShuffleAndAdd, Upsample)
    model.__dict__["_adopted_shuffles"] = ("shuffle",)  # as earlier versions wrote it
    read = pickle.loads(written_before(model, "ShuffleAndAdd"))
    assert isinstance(read, Upsample)
    assert torch.equal(read(*inputs), wanted)
    file = io.BytesIO()
    torch.save(read, file)
    file.seek(0)
    again: Any = torch.load(file, weights_only=False)
    assert torch.equal(again(*inputs), wanted)
