"""What the matrix is about: every public operator and module, small, and a whole DiMR, each as a module with inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import dimr
import dimr_kernels as dk
from dimr_kernels import functional as F
from tests.support.small_models import inputs as model_inputs
from tests.support.small_models import perturbed_model

D = 16
MODEL = dimr.DiMRConfig(
    in_channels=3, input_size=4, dims=(16, 8), layers=(1, 1), num_heads=2, num_classes=5, kernel_size=3
)


class Call(nn.Module):
    """A stateless operator over inputs and ``sizes`` of parameters; a class of its own, so that pickle finds it."""

    def __init__(self, name: str, *sizes: tuple[int, ...], **options: object) -> None:
        super().__init__()
        self.name, self.options = name, options
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(size)) for size in sizes])

    def forward(self, *inputs: Tensor) -> Tensor:
        return getattr(F, self.name)(*inputs, *self.weights, **self.options)


class ShuffleNormAdd(Call):
    """The upscale factor stands between ``t`` and the parameters."""

    def forward(self, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        return F.pixel_shuffle_td_norm_add(x, y, t, 2, *self.weights)


def _moved(module: nn.Module) -> nn.Module:
    """No parameter at a special value, so that nothing is zero, or the same for every timestep, by construction."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return module


def _random(*shapes: tuple[int, ...]) -> Callable[[int], tuple[Tensor, ...]]:
    """Inputs of these shapes behind the batch."""
    return lambda batch: tuple(torch.randn((batch, *shape)) for shape in shapes)


def _model_inputs(batch: int) -> tuple[Tensor, ...]:
    return tuple(model_inputs(MODEL, batch).values())


@dataclass(frozen=True)
class Subject:
    make: Callable[[], nn.Module]
    make_inputs: Callable[[int], tuple[Tensor, ...]]
    fused: str = "triton"
    """The backend of its fused form; "auto" where that is torch's own."""

    def module(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return _moved(self.make())

    def inputs(self, batch: int = 2) -> tuple[Tensor, ...]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            return self.make_inputs(batch)


ROWS, IMAGE, TIME = (3, D), (4, 4, 8), ()
LOW, HIGH = (2, 2, 32), (4, 4, 8)
GATES = [(8,)] * 8

SUBJECTS = {
    "TDLayerNorm": Subject(lambda: dk.TDLayerNorm(D), _random(ROWS, TIME)),
    "TDLayerNorm + residual": Subject(lambda: dk.TDLayerNorm(D), _random(ROWS, TIME, ROWS)),
    "TDRMSNorm": Subject(lambda: dk.TDRMSNorm(D), _random(ROWS, TIME)),
    "TDRMSNorm + residual": Subject(lambda: dk.TDRMSNorm(D), _random(ROWS, TIME, ROWS)),
    "TDGroupNorm": Subject(lambda: dk.TDGroupNorm(2, 8), _random(IMAGE, TIME)),
    "GEGLU": Subject(lambda: dk.GEGLU(D, 8), _random(ROWS)),
    "GEGLUMLP": Subject(lambda: dk.GEGLUMLP(D, 8), _random(ROWS)),
    "geglu": Subject(lambda: Call("geglu"), _random(ROWS)),
    "geglu, two tensors": Subject(lambda: Call("geglu"), _random(ROWS, ROWS)),
    "geglu_linear": Subject(lambda: Call("geglu_linear", (16, D), (16,)), _random(ROWS)),
    "DepthwiseConv2d": Subject(lambda: dk.DepthwiseConv2d(8, kernel_size=3), _random(IMAGE)),
    "DepthwiseConv2d + residual": Subject(lambda: dk.DepthwiseConv2d(8, kernel_size=3), _random(IMAGE, IMAGE)),
    "PixelShuffleUpsample": Subject(lambda: dk.PixelShuffleUpsample(8, 8), _random((2, 2, 8), HIGH, TIME)),
    "pixel_shuffle_add": Subject(lambda: Call("pixel_shuffle_add", upscale_factor=2), _random(LOW, HIGH), "cuda"),
    "pixel_unshuffle": Subject(lambda: Call("pixel_unshuffle", downscale_factor=2), _random(HIGH), "cuda"),
    "pixel_shuffle_td_norm_add": Subject(
        lambda: ShuffleNormAdd("pixel_shuffle_td_norm_add", *GATES), _random(LOW, HIGH, TIME)
    ),
    "SelfAttention": Subject(lambda: dk.SelfAttention(D, num_heads=2), _random(ROWS), "auto"),
    "DiMR": Subject(lambda: perturbed_model(MODEL), _model_inputs),
}
