"""Depthwise convolutions, with the layout handled once around the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..dispatch import current_backend
from ..ops.depthwise_conv.functional import depthwise_conv2d
from .report import AdoptionReport
from .sites import Rule, Site, loaded_classes, why_not_exactly, why_not_plain_tensors
from .swap import Adopted, Change, ClassChange, Hook

BLOCKS = ("timm.models.convnext.ConvNeXtBlock", "torchvision.models.convnext.CNBlock")
NETWORKS = ("timm.models.convnext.ConvNeXt", "torchvision.models.convnext.ConvNeXt")
KERNEL_SIZES = (3, 5, 7)


class DepthwiseConvolution(Adopted):
    """``[B, C, H, W]`` -> ``[B, C, H, W]``, channels last in memory: the operator's [B, H, W, C] is a view of it.

    Feature maps that come in another layout go to torch's own convolution, for the operator would copy them.
    """

    weight: Tensor
    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() != 4 or (input.stride(1) != 1 and current_backend() in ("auto", "eager")):
            return super().forward(input)
        return depthwise_conv2d(input.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


def rule(channels_last: bool | None) -> Rule:
    """See :func:`dimr_kernels.adopt` for ``channels_last``."""
    return Rule(_what, lambda site: _why_not(site, channels_last), _swap)


def _what(site: Site) -> str | None:
    conv = site.module
    if not isinstance(conv, nn.Conv2d) or not 1 < conv.groups == conv.in_channels:
        return None
    return f"nn.Conv2d {'x'.join(map(str, conv.kernel_size))} depthwise"


def _why_not(site: Site, channels_last: bool | None) -> str | None:
    conv: Any = site.module
    problem = why_not_exactly(conv, nn.Conv2d) or why_not_plain_tensors(conv) or _why_no_operator(conv)
    if problem is not None or channels_last:
        return problem
    if channels_last is False:
        return "channels_last=False leaves depthwise convolutions alone"
    if not any(isinstance(module, loaded_classes(*BLOCKS)) for module in site.above):
        return "not in a known ConvNeXt: channels_last=True swaps it, and runs the model in channels last"
    return None


def _why_no_operator(conv: nn.Conv2d) -> str | None:
    K = conv.kernel_size[0]
    if conv.kernel_size not in [(k, k) for k in KERNEL_SIZES]:
        return "its kernel is not 3x3, 5x5 or 7x7"
    if conv.stride != (1, 1):
        return f"its stride is {conv.stride}, not 1"
    if conv.dilation != (1, 1):
        return f"its dilation is {conv.dilation}, not 1"
    if conv.out_channels != conv.in_channels:
        return f"it makes {conv.out_channels} channels out of {conv.in_channels}"
    if conv.padding != "same" and conv.padding != (K // 2, K // 2):
        return f"its padding is {conv.padding}, which changes the size"
    if conv.padding_mode != "zeros":
        return f"its padding mode is {conv.padding_mode!r}, not 'zeros'"
    return None


def _swap(site: Site) -> tuple[str, Change]:
    return "depthwise_conv2d, channels last", ClassChange(site.path, site.module, DepthwiseConvolution)


def run_in_channels_last(
    model: nn.Module, swapped: Sequence[Site], channels_last: bool | None, report: AdoptionReport
) -> None:
    """A hook around each network with swapped convolutions: the model itself where the caller wants all of it so."""
    names = {module: name for name, module in model.named_modules()}
    roots = [model] if channels_last else _networks(swapped)
    for root in roots if swapped else ():
        if inputs_to_channels_last not in root._forward_pre_hooks.values():
            handle = root.register_forward_pre_hook(inputs_to_channels_last, with_kwargs=True)
            where = names[root] or "the model"
            report.add_note(f"{where} runs in channels last: a hook converts its inputs", Hook(handle))


def _networks(swapped: Sequence[Site]) -> list[nn.Module]:
    """The known networks around layers; for blocks that stand in none, the innermost module around all of them."""
    networks: dict[nn.Module, None] = {}
    others = []
    for site in swapped:
        known = [module for module in site.above if isinstance(module, loaded_classes(*NETWORKS))]
        if known:
            networks[known[0]] = None
        else:
            others.append(site.above)
    if others:
        around = [group[0] for group in zip(*others, strict=False) if all(module is group[0] for module in group)]
        networks[next(module for module in reversed(around) if _has_forward(module))] = None
    return list(networks)


def _has_forward(module: nn.Module) -> bool:
    """A list of modules is not called."""
    return type(module).forward is not nn.Module.forward


def inputs_to_channels_last(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:  # fmt: skip
    """Forward pre-hook: images ``[B, C, H, W]`` among the inputs become channels last in memory."""
    return tuple(map(_to_channels_last, args)), {name: _to_channels_last(value) for name, value in kwargs.items()}


def _to_channels_last(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dim() == 4 and value.is_floating_point():
        return value.contiguous(memory_format=torch.channels_last)
    return value
