"""Where a model's layers stand, and what every proof asks of a layer first."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ..plain import hooks_of, is_plain_tensor
from .swap import Adopted, Change


def check_module(function: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model must be an nn.Module, got {type(model).__name__}")


@dataclass(frozen=True)
class Site:
    """A layer and the way to it."""

    path: str
    """The first name in ``named_modules()``."""
    module: nn.Module
    above: tuple[nn.Module, ...]
    """The modules on the first path, from the model down to the layer's parent."""
    paths: tuple[str, ...]
    """All of its names."""


def sites_of(model: nn.Module) -> list[Site]:
    """One for each module, however often it occurs."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return [Site(paths[0], module, _above(model, paths[0]), tuple(paths)) for module, paths in names.items()]


def _above(model: nn.Module, path: str) -> tuple[nn.Module, ...]:
    parts = path.split(".") if path else []
    return tuple(model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts)))


@dataclass(frozen=True)
class Rule:
    """A family of layers and how they are swapped."""

    what: Callable[[Site], str | None]
    """Names a layer of the family; None for any other."""
    why_not: Callable[[Site], str | None]
    """What is missing in the proof that the swap changes nothing; None where it is complete."""
    swap: Callable[[Site], tuple[str, Change]]
    """Swaps, and tells by what."""


def loaded_class(name: str) -> Any:
    """The class of that dotted name, or None as long as its library was not imported: nothing is imported for it."""
    module, _, attribute = name.rpartition(".")
    return getattr(sys.modules.get(module), attribute, None)


def loaded_classes(*names: str) -> tuple[type, ...]:
    return tuple(cls for cls in map(loaded_class, names) if isinstance(cls, type))


def why_not_exactly(module: nn.Module, cls: type[nn.Module]) -> str | None:
    """Why a call of the module may be something else than ``cls.forward``."""
    if isinstance(module, Adopted):
        return "already adopted"
    if is_parametrized(module):
        names = ", ".join(module.parametrizations)  # type: ignore[arg-type]
        return f"its {names} is parametrized"
    if type(module) is not cls:
        found = type(module)
        return f"it is a {found.__module__}.{found.__name__}, which may compute something else than {cls.__name__}"
    return why_watched(module)


def why_watched(module: nn.Module) -> str | None:
    hooks = hooks_of(module)
    if hooks:
        return f"it has hooks: {', '.join(hooks)}"
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    return None


def why_not_plain_tensors(module: nn.Module) -> str | None:
    """Quantised and sharded weights are subclasses, which the layer's own operator knows and ours may not."""
    for name, tensor in module.named_parameters():
        if not is_plain_tensor(tensor):
            return f"its {name} is a {type(tensor).__name__}"
    return None
