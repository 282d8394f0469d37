"""Changes to a model that can be undone.

A layer that is proved equal keeps its module: only its class changes, to a subclass of its own with another forward.
So parameters, buffers, hooks, names, ``isinstance``, optimizers and whoever holds the module stay as they were. A layer
that becomes another one (with other parameters) is replaced wherever its parents hold it.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn
from torch.utils.hooks import RemovableHandle


class Change(Protocol):
    def problem(self) -> str | None:
        """Why it cannot be undone, None if it can."""

    def undo(self) -> None: ...


class Adopted(nn.Module):
    """Base of the forwards that stand before a layer's own class, which ``super().forward`` reaches.

    The classes are made when needed, so copies and pickles name the two halves instead.
    """

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(protocol)
        if not is_adopted(self):  # something has put a class of its own before ours
            return reduced
        return _new, type(self).__bases__, *reduced[2:]


_classes: dict[tuple[type, ...], type[nn.Module]] = {}


def adopted_class(forward: type[Adopted], base: type[nn.Module]) -> type[nn.Module]:
    """``base`` with another forward; one class for each pair."""
    cls = type(f"Adopted{base.__name__}", (forward, base), {"__module__": forward.__module__})
    return _classes.setdefault((forward, base), cls)


def is_adopted(module: nn.Module) -> bool:
    return _classes.get(type(module).__bases__) is type(module)


def _new(forward: type[Adopted], base: type[nn.Module]) -> nn.Module:
    cls = adopted_class(forward, base)
    return cls.__new__(cls)


class ClassChange:
    """``module`` computes ``forward`` from now on; everything else about it stays."""

    def __init__(self, path: str, module: nn.Module, forward: type[Adopted]) -> None:
        self._path, self._module, self._base = path, module, type(module)
        self._adopted = adopted_class(forward, self._base)
        module.__class__ = self._adopted

    def problem(self) -> str | None:
        found = type(self._module)
        if found is not self._adopted:
            return f"{self._path!r} is {found.__name__} now, {self._adopted.__name__} was put there"
        if "forward" in vars(self._module):
            return f"the forward of {self._path!r} was replaced since"
        return None

    def undo(self) -> None:
        self._module.__class__ = self._base


class Replacement:
    """``new`` stands wherever in ``root`` the layer ``old`` stood.

    Raises:
        ValueError: ``old`` is ``root`` itself, or not in it.
    """

    def __init__(self, root: nn.Module, old: nn.Module, new: nn.Module) -> None:
        self._old, self._new = old, new
        self._places = [
            (parent, name) for parent in root.modules() for name, child in parent._modules.items() if child is old
        ]
        if not self._places:
            where = "is the model itself" if old is root else "is not in the model"
            raise ValueError(f"Replacement: the {type(old).__name__} to replace {where}")
        self._put(new)

    def _put(self, module: nn.Module) -> None:
        for parent, name in self._places:
            parent._modules[name] = module

    def problem(self) -> str | None:
        for parent, name in self._places:
            found = parent._modules.get(name)
            if found is not self._new:
                return (
                    f"{name!r} of a {type(parent).__name__} is {type(found).__name__} now, another "
                    f"{type(self._new).__name__} was put there"
                )
        return None

    def undo(self) -> None:
        self._put(self._old)


class Hook:
    """A hook that was registered on a module."""

    def __init__(self, handle: RemovableHandle) -> None:
        self._handle = handle

    def problem(self) -> str | None:
        return None

    def undo(self) -> None:
        self._handle.remove()
