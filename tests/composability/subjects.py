"""One small module for each public operator, and a whole DiMR, with inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import dimr
import dimr_kernels as dk
from dimr_kernels import functional as F
from dimr_kernels.dispatch import FUSED_FORMS
from tests.support.small_models import inputs as model_inputs
from tests.support.small_models import perturbed_model

D = 16
MODEL = dimr.DiMRConfig(
    in_channels=3, input_size=4, dims=(16, 8), layers=(1, 1), num_heads=2, num_classes=5, kernel_size=3
)


class Call(nn.Module):
    """An operator without parameters."""

    def __init__(self, name: str, **options: object) -> None:
        super().__init__()
        self.name, self.options = name, options

    def forward(self, *inputs: Tensor) -> Tensor:
        return getattr(F, self.name)(*inputs, **self.options)


def _moved(module: nn.Module) -> nn.Module:
    """Move every parameter off its initial value, so that no result is zero or constant in time by construction."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return module


def _random(*shapes: tuple[int, ...]) -> Callable[[int], tuple[Tensor, ...]]:
    """Return a function that makes random inputs; the shapes leave out the batch."""
    return lambda batch: tuple(torch.randn((batch, *shape)) for shape in shapes)


def _model_inputs(batch: int) -> tuple[Tensor, ...]:
    return tuple(model_inputs(MODEL, batch).values())


@dataclass(frozen=True)
class Subject:
    operator: str | None
    """Its name in ``dimr_kernels.functional``."""
    make: Callable[[], nn.Module]
    make_inputs: Callable[[int], tuple[Tensor, ...]]
    fused: str = "triton"
    """The backend of its fused form; "auto" where that is torch's own."""

    @property
    def has_cpp(self) -> bool:
        """Return True if there is a C++ form beside Triton's."""
        return self.fused == "triton" and (self.operator is None or "cpp" in FUSED_FORMS[self.operator].cpu)

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

SUBJECTS = {
    "TDLayerNorm + residual": Subject("td_layer_norm", lambda: dk.TDLayerNorm(D), _random(ROWS, TIME, ROWS)),
    "TDRMSNorm": Subject("td_rms_norm", lambda: dk.TDRMSNorm(D), _random(ROWS, TIME)),
    "TDGroupNorm": Subject("td_group_norm", lambda: dk.TDGroupNorm(2, 8), _random(IMAGE, TIME)),
    "geglu": Subject("geglu", lambda: Call("geglu"), _random(ROWS)),
    "GEGLUMLP": Subject("geglu_linear", lambda: dk.GEGLUMLP(D, 8), _random(ROWS)),
    "DepthwiseConv2d + residual": Subject(
        "depthwise_conv2d", lambda: dk.DepthwiseConv2d(8, kernel_size=3), _random(IMAGE, IMAGE)
    ),
    "pixel_shuffle_add": Subject(
        "pixel_shuffle_add", lambda: Call("pixel_shuffle_add", upscale_factor=2), _random(LOW, HIGH), "cuda"
    ),
    "pixel_unshuffle": Subject(
        "pixel_unshuffle", lambda: Call("pixel_unshuffle", downscale_factor=2), _random(HIGH), "cuda"
    ),
    "PixelShuffleUpsample": Subject(
        "pixel_shuffle_td_norm_add", lambda: dk.PixelShuffleUpsample(8, 8), _random((2, 2, 8), HIGH, TIME)
    ),
    "SelfAttention": Subject("attention", lambda: dk.SelfAttention(D, num_heads=2), _random(ROWS), "auto"),
    "DiMR": Subject(None, lambda: perturbed_model(MODEL), _model_inputs),
}
