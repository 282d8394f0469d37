"""Layout of adopted depthwise convolutions: converted once around the network, and copied in no layer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import dimr_kernels as dk
from dimr_kernels.adoption import rules
from dimr_kernels.ops import depthwise_conv_triton as kernels

from .models import image, timm_convnext, torchvision_convnext

COPIES = {"clone", "copy_", "contiguous", "_to_copy"}
# Layout that each operator needs to avoid an internal copy: [B, C, H, W] and [B, H, W, C] of the same memory.
WANTED = {
    "convolution": torch.channels_last,
    "depthwise_conv2d": torch.contiguous_format,
    "native_layer_norm": torch.contiguous_format,
}


class LayoutWatch(TorchDispatchMode):
    """Record copies of feature maps, and operators called with one that is not channels last."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.copied: list[tuple[int, ...]] = []
        self.badly_laid_out: list[str] = []

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), kwargs: Any = None) -> Any:
        first = next((value for value in arguments if isinstance(value, Tensor)), None)
        if first is not None and first.dim() == 4 and first.shape[0] == self.features:
            if operator._opname in COPIES:
                self.copied.append(tuple(first.shape))
            memory_format = WANTED.get(operator._opname)
            if memory_format is not None and not first.is_contiguous(memory_format=memory_format):
                self.badly_laid_out.append(f"{operator} of {tuple(first.shape)} with strides {first.stride()}")
        return operator(*arguments, **(kwargs or {}))


NETWORKS = {
    "timm": timm_convnext,
    "timm, linear MLP": lambda: timm_convnext(conv_mlp=False),
    "timm V2": lambda: timm_convnext("convnextv2_atto"),
    "torchvision": torchvision_convnext,
}


@pytest.mark.parametrize(
    ("network", "backend"),
    [
        *[(network, "auto") for network in NETWORKS],
        *[pytest.param(network, "triton", marks=pytest.mark.slow) for network in ("timm", "torchvision")],
    ],
)
def test_only_the_image_is_copied(network, backend):
    model, x = NETWORKS[network]().eval(), image(batch=3)
    dk.adopt(model)
    with dk.use_backend(backend), LayoutWatch(features=3) as watch:
        model(x)
    assert watch.copied == [(3, 3, 32, 32)]
    assert watch.badly_laid_out == []


def test_an_image_in_channels_last_is_not_copied():
    model, x = timm_convnext().eval(), image(batch=3).contiguous(memory_format=torch.channels_last)
    dk.adopt(model)
    with LayoutWatch(features=3) as watch:
        model(x)
    assert watch.copied == []


@pytest.mark.slow
def test_the_kernels_copy_nothing_forward_and_backward(monkeypatch):
    """Count copies inside the operator, which a dispatch mode does not see."""
    copied = []

    def dense_channels(x: Tensor) -> Tensor:
        if x.stride(3) != 1 and x.shape[3] > 1:
            copied.append((tuple(x.shape), x.stride()))
        return x.contiguous()

    monkeypatch.setattr(kernels, "_dense_channels", dense_channels)
    model = timm_convnext(conv_mlp=False)
    dk.adopt(model)
    with dk.use_backend("triton"):
        model.forward_features(image(batch=1)).sum().backward()
        assert len(copied) <= 1, "the way past the hook: the first block at most"
        copied.clear()
        model(image(batch=1)).sum().backward()
    assert len(copied) <= 1, "the gradient of the pooling is the same for all pixels: it has no layout"


def test_other_layouts_take_torchs_own_convolution(monkeypatch):
    """Fall back to torch where each layer would copy, except with an explicit backend, which is binding."""
    calls = []

    def operator(x: Tensor, *parameters: Any) -> Tensor:
        calls.append(x.is_contiguous())
        return dk.functional.depthwise_conv2d(x, *parameters)

    monkeypatch.setattr(rules, "depthwise_conv2d", operator)
    conv = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    original, x = copy.deepcopy(conv), torch.randn(2, 8, 5, 6)
    dk.adopt(conv, channels_last=True)
    past_the_hook = type(conv).forward
    assert torch.equal(past_the_hook(conv, x), original(x))
    assert calls == []
    with dk.use_backend("triton"):
        torch.testing.assert_close(past_the_hook(conv, x), original(x))
    assert calls == [False]
    found = conv(x)
    assert calls == [False, True]
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, original(x))


def test_images_without_a_batch():
    conv = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    original = copy.deepcopy(conv)
    dk.adopt(conv, channels_last=True)
    x = torch.randn(8, 5, 6)
    with dk.use_backend("triton"):
        torch.testing.assert_close(conv(x), original(x))


def test_a_network_has_one_hook_however_often_it_is_adopted():
    """Adopt twice; the second time finds more layers to swap."""
    model = timm_convnext()
    handle = model.stages[0].blocks[0].conv_dw.register_forward_hook(lambda *arguments: None)
    assert len(dk.adopt(model).swapped) == 3
    handle.remove()
    second = dk.adopt(model)
    assert len(second.swapped) == 1
    assert len(model._forward_pre_hooks) == 1
    second.undo()
    assert len(model._forward_pre_hooks) == 1


class Detector(nn.Module):
    """Network around a known one, with images in a layout of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = timm_convnext()
        self.seen: list[bool] = []

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        self.seen.append(x.is_contiguous())
        return self.backbone(x) * mask.mean()


def test_the_hook_is_on_the_network_not_on_what_is_around_it():
    model = Detector()
    report = dk.adopt(model)
    assert model._forward_pre_hooks == {}
    assert len(model.backbone._forward_pre_hooks) == 1
    assert "backbone runs in channels last" in str(report)
    model(image(), torch.ones(2, 1, 32, 32))
    assert model.seen == [True]


def test_blocks_outside_a_known_network():
    convnext = pytest.importorskip("timm.models.convnext")
    blocks = nn.ModuleList(convnext.ConvNeXtBlock(8, ls_init_value=1.0) for _ in range(2))

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = blocks

        def forward(self, x: Tensor) -> Tensor:
            return self.blocks[1](self.blocks[0](x))

    model = Own()
    original = copy.deepcopy(model)
    report = dk.adopt(model)
    assert len(report.swapped) == 2
    assert len(model._forward_pre_hooks) == 1, "a list of modules is not called, so the hook is above it"
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(model(x), original(x))


def test_keyword_inputs_and_other_types_pass_the_hook():
    seen = {}

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=4)

        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            seen.update(kwargs, args=args)
            return self.conv(kwargs["x"])

    model = Root()
    dk.adopt(model, channels_last=True)
    labels, tokens, mask = torch.arange(3), torch.randn(2, 3, 4), torch.zeros(1, 4, 5, 5, dtype=torch.int64)
    model(labels, "text", None, x=torch.randn(2, 4, 5, 5), tokens=tokens, mask=mask)
    assert seen["x"].is_contiguous(memory_format=torch.channels_last)
    assert seen["args"][0] is labels
    assert seen["args"][1:] == ("text", None)
    assert seen["tokens"] is tokens
    assert seen["mask"] is mask
