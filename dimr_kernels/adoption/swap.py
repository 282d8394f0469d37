"""Changes to a model that can be undone, and the report of what was changed.

A layer that computes the same afterwards keeps its module: only its class changes, to a subclass of its own with
another forward. So parameters, buffers, hooks, names, ``isinstance``, optimizers and references to the module stay as
they were. A layer that becomes another one, with other parameters, is replaced wherever its parents hold it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


class Adopted(nn.Module):
    """Base of the forwards that are put before a layer's own class, which ``super().forward`` reaches.

    The combined classes are made on demand, so copies and pickles name the two bases instead.
    """

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(protocol)
        if not is_adopted(self):  # another library has subclassed ours, as parametrize does
            return reduced
        return _new, type(self).__bases__, *reduced[2:]


class ShuffleAndAdd(Adopted):
    """Stands for a forward of earlier versions in their pickles; the layer's own forward computes the same."""


_classes: dict[tuple[type, ...], type[nn.Module]] = {}


def adopted_class(forward: type[Adopted], base: type[nn.Module]) -> type[nn.Module]:
    """``base`` with another forward; one class for each pair."""
    cls = type(f"Adopted{base.__name__}", (forward, base), {"__module__": forward.__module__})
    return _classes.setdefault((forward, base), cls)


def is_adopted(module: nn.Module) -> bool:
    return _classes.get(type(module).__bases__) is type(module)


def _new(forward: type[Adopted], base: type[nn.Module]) -> nn.Module:
    """Make an empty instance for copies and pickles, which name this function."""
    cls = adopted_class(forward, base)
    return cls.__new__(cls)


def library_problem(cls: type[nn.Module], forward: type[Adopted], make: Callable[[], nn.Module]) -> str | None:
    """Compare the installed library's forward with ours on a small layer of its class in float64."""
    try:
        with torch.random.fork_rng(devices=()), torch.device("cpu"), torch.no_grad():
            layer, x = make().double().eval(), torch.randn(3, 4, dtype=torch.float64)
            expected = cls.forward(layer, x)
            layer.__class__ = adopted_class(forward, cls)
            same = torch.allclose(layer(x), expected, rtol=1e-12, atol=1e-12)
    except Exception as error:  # another project's layer may raise anything
        return f"this version of its library is not known: {type(error).__name__}: {error}"
    return None if same else "this version of its library computes something else"


class Change(Protocol):
    """A change to a model that can be undone."""

    def problem(self) -> str | None:
        """Say why it cannot be undone; None if it can."""

    def undo(self) -> None: ...


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


@dataclass(frozen=True)
class Swapped:
    """A layer that was swapped.

    Attributes:
        path: its name in ``model.named_modules()``, the first where it has several; "" is the model itself.
        what: the layer's kind before, for example "nn.Conv2d 7x7 depthwise".
        by: the operator that computes it now.
    """

    path: str
    what: str
    by: str


@dataclass(frozen=True)
class Left:
    """A layer of a kind that can be swapped, which was not; ``why`` is the reason."""

    path: str
    what: str
    why: str


@dataclass
class AdoptionReport:
    """The layers that were swapped, and those that were left with the reason.

    ``print(report)`` shows a short table; ``undo()`` restores the model. ``notes`` name other changes, as a hook or the
    layout of inputs.
    """

    swapped: list[Swapped] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _changes: list[Change] = field(default_factory=list, repr=False)

    def add_swapped(self, path: str, what: str, by: str, *changes: Change) -> None:
        self.swapped.append(Swapped(path, what, by))
        self._changes.extend(changes)

    def add_left(self, path: str, what: str, why: str) -> None:
        self.left.append(Left(path, what, why))

    def add_note(self, note: str, *changes: Change) -> None:
        self.notes.append(note)
        self._changes.extend(changes)

    def undo(self) -> None:
        """Give the model back its own layers: the very modules and parameters it had. A second call does nothing.

        Raises:
            RuntimeError: a swapped layer was changed since by something else; nothing is undone.
        """
        problems = [problem for change in self._changes if (problem := change.problem()) is not None]
        if problems:
            raise RuntimeError(f"AdoptionReport.undo: {'; '.join(problems)}")
        for change in reversed(self._changes):
            change.undo()
        self._changes.clear()

    def __str__(self) -> str:
        layers = "layer" if len(self.swapped) == 1 else "layers"
        lines = [f"{len(self.swapped)} {layers} swapped, {len(self.left)} left as they were"]
        lines += _table("swapped", ((row.path, row.what, f"by {row.by}") for row in self.swapped))
        lines += _table("left", ((row.path, row.what, row.why) for row in self.left))
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def _table(title: str, rows: Iterable[tuple[str, str, str]]) -> list[str]:
    """Format one line for all layers of one kind and outcome, with the first of them as an example."""
    groups: dict[tuple[str, str], list[str]] = {}
    for path, what, outcome in rows:
        groups.setdefault((what, outcome), []).append(path or "(the model)")
    width = max((len(what) for what, _ in groups), default=0)
    return [
        f"  {title:7} {len(paths):4} x {what:{width}}  {outcome}  [{paths[0]}{', ...' if len(paths) > 1 else ''}]"
        for (what, outcome), paths in groups.items()
    ]
