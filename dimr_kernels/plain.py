"""Whether a module does what its class says and nothing else, so that its parameters may be used without calling it."""

from __future__ import annotations

from torch import Tensor, nn


def is_plain_tensor(tensor: object) -> bool:
    """Not a subclass, as quantised and sharded weights are."""
    return type(tensor) in (nn.Parameter, Tensor)


def hooks_of(module: nn.Module) -> list[str]:
    """Names of the hooks that wait for a call."""
    kinds = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return [getattr(hook, "__name__", type(hook).__name__) for kind in kinds for hook in kind.values()]


def is_watched(module: nn.Module) -> bool:
    """Whether a call runs hooks, or a forward that was put on the instance."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a call is ``F.linear`` of a weight and a bias: no adapter in its place, nothing that waits for it."""
    return type(module) is nn.Linear and not is_watched(module) and is_plain_tensor(module.weight)
