"""Argument checks, whose messages name operator, argument, expected and given; and modules that may be bypassed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Without the 8-bit dtypes, which are for storage: torch itself computes nothing in them.
FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_floating(operator: str, **tensors: Tensor | None) -> None:
    """Check that the first tensor, and each of the others that is not None, has a floating-point dtype."""
    required = True
    for name, tensor in tensors.items():
        if required or tensor is not None:
            check_floating_tensor(operator, name, tensor)
        required = False


def check_floating_tensor(operator: str, name: str, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{operator}: {name} must be a Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in FLOATING:
        raise TypeError(f"{operator}: {name} must have a floating-point dtype of 16 bits or more, got {tensor.dtype}")


def check_number(operator: str, name: str, value: object) -> None:
    if not isinstance(value, (float, int, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"{operator}: {name} must be a number, got {type(value).__name__}")


def can_read_values(tensor: Tensor) -> bool:
    """Return True if reading the values does not synchronise with a GPU.

    False for subclasses (fake tensors) and under ``torch.func`` (a batch of vmap), where there may be no values. If a
    future torch lacks the private function that tells of ``torch.func``, values are never read.
    """
    return (
        tensor.device.type == "cpu"
        and type(tensor) in (Tensor, nn.Parameter)
        and not torch.compiler.is_compiling()
        and not _transforms_active()
    )


_transforms_active = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


def check_shape(operator: str, name: str, tensor: Tensor, wanted: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != tuple(wanted):
        raise ValueError(f"{operator}: {name} must have shape {list(wanted)}, got {list(tensor.shape)}")


def check_rank(operator: str, name: str, tensor: Tensor, rank: int, layout: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{operator}: {name} must be a Tensor, got {type(tensor).__name__}")
    if tensor.dim() != rank:
        raise ValueError(f"{operator}: {name} must have {rank} dimensions {layout}, got shape {list(tensor.shape)}")


def check_same_device(operator: str, **tensors: Tensor | None) -> None:
    """Check that all tensors that are not None are on one device."""
    first_name, first = "", None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if first is None:
            first_name, first = name, tensor
        elif tensor.device != first.device:
            raise ValueError(f"{operator}: {name} is on {tensor.device}, {first_name} is on {first.device}")


def check_same_dtype(operator: str, **tensors: Tensor | None) -> None:
    """Check that all tensors that are not None have one dtype."""
    first_name, dtype = "", None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if dtype is None:
            first_name, dtype = name, tensor.dtype
        elif tensor.dtype != dtype:
            raise TypeError(f"{operator}: {name} has dtype {tensor.dtype}, {first_name} has {dtype}")


def check_choice(operator: str, name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{operator}: {name} must be one of {', '.join(map(repr, choices))}; got {value!r}")


def check_shuffle(operator: str, x: Tensor, name: str, factor: int, layout: str) -> int:
    """Check x, the factor and the layout, which both directions share; return the factor."""
    check_floating(operator, x=x)
    check_choice(operator, "layout", layout, ("nhwc", "nchw"))
    check_rank(operator, "x", x, 4, "[B, H, W, C]" if layout == "nhwc" else "[B, C, H, W]")
    if not isinstance(factor, int) or factor < 1:
        raise ValueError(f"{operator}: {name} must be an integer of at least 1, got {factor!r}")
    return factor


def check_shuffled(operator: str, x: Tensor, y: Tensor | None, r: int, layout: str) -> int:
    """Check x's channels, and y against x; return the channels of the result."""
    nhwc = layout == "nhwc"
    channels = x.shape[3 if nhwc else 1]
    if channels % (r * r):
        raise ValueError(
            f"{operator}: x must have a multiple of {r * r} channels for upscale_factor {r}, got {channels} in shape "
            f"{list(x.shape)}, layout {layout!r}"
        )
    C = channels // (r * r)
    if y is not None:
        B, H, W = (x.shape[0], *x.shape[1:3]) if nhwc else (x.shape[0], *x.shape[2:])
        check_floating(operator, y=y)
        check_shape(operator, "y", y, (B, r * H, r * W, C) if nhwc else (B, C, r * H, r * W))
        check_same_device(operator, x=x, y=y)
    return C


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """Return the dtype that autocast gives matrix products of this tensor; None outside autocast."""
    device_type = tensor.device.type
    if device_type == "meta" or tensor.dtype == torch.float64 or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def is_plain_tensor(tensor: object) -> bool:
    """Return True unless it is a subclass, as quantised and sharded weights are."""
    return type(tensor) in (nn.Parameter, Tensor)


def hook_names(module: nn.Module) -> list[str]:
    """Return the names of the hooks that a call of the module runs."""
    kinds = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return [getattr(hook, "__name__", type(hook).__name__) for kind in kinds for hook in kind.values()]


def is_call_modified(module: nn.Module) -> bool:
    """Return True if a call runs hooks, or a ``forward`` that was set on the instance."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def is_plain_linear(module: nn.Module) -> bool:
    """Return True if a call is ``F.linear`` and nothing else, so that weight and bias may be used without calling it.

    False for adapters (LoRA), hooks and quantised weights.
    """
    return type(module) is nn.Linear and not is_call_modified(module) and is_plain_tensor(module.weight)
