"""``nn.PixelShuffle`` whose result is added to something: proved and written anew by a trace (``tracing.py``)."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..plain import is_watched
from .sites import Rule, Site, why_not_exactly
from .swap import Adopted, Change, ClassChange
from .tracing import Returned, Unprovable, rewritten, way_to

FORWARD, SHUFFLES = "_adopted_forward", "_adopted_shuffles"


class ShuffleAndAdd(Adopted):
    """The forward of a module's own class, with each shuffle of ``_adopted_shuffles`` done by the sum it goes to.

    The code comes from a trace of this very module and looks its submodules up at each call. Where one of the shuffles
    has been replaced since, or has got a hook, the module's own forward runs.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        forward = self.__dict__.get(FORWARD)
        if forward is None or any(_has_changed(self, path) for path in self.__dict__[SHUFFLES]):
            return super().forward(*args, **kwargs)
        return forward(self, *args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        create, arguments, state, *rest = super().__reduce_ex__(protocol)
        return create, arguments, {name: value for name, value in state.items() if name != FORWARD}, *rest

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        try:
            self.__dict__[FORWARD] = rewritten(self, state[SHUFFLES])
        except Unprovable:  # it was changed after it was adopted
            self.__dict__[FORWARD] = None


def _has_changed(parent: nn.Module, path: str) -> bool:
    way = way_to(parent, path)
    return type(way[-1]) is not nn.PixelShuffle or any(map(is_watched, way))


class Fusion:
    """``parent`` runs with one more of its shuffles fused."""

    def __init__(self, path: str, parent: nn.Module, shuffle: str) -> None:
        self._parent = parent
        self._before = parent.__dict__.get(FORWARD), parent.__dict__.get(SHUFFLES, ())
        shuffles = (*self._before[1], shuffle)
        parent.__dict__.update({FORWARD: rewritten(parent, shuffles), SHUFFLES: shuffles})
        self._class = None if isinstance(parent, ShuffleAndAdd) else ClassChange(path, parent, ShuffleAndAdd)

    def problem(self) -> str | None:
        return None if self._class is None else self._class.problem()

    def undo(self) -> None:
        if self._class is None:
            self._parent.__dict__.update(zip((FORWARD, SHUFFLES), self._before, strict=True))
            return
        self._class.undo()
        for name in (FORWARD, SHUFFLES):
            del self._parent.__dict__[name]


def _what(site: Site) -> str | None:
    return "nn.PixelShuffle" if isinstance(site.module, nn.PixelShuffle) else None


def _why_not(site: Site) -> str | None:
    try:
        _place(site)
    except Unprovable as problem:
        return str(problem)
    return None


def _place(site: Site) -> tuple[nn.Module, str]:
    """The smallest module whose forward adds the shuffle's result, and the shuffle's path in it."""
    problem = why_not_exactly(site.module, nn.PixelShuffle)
    if problem is not None:
        raise Unprovable(problem)
    if not site.above:
        raise Unprovable("it is the model itself")
    parents = {site.above[0].get_submodule(path.rpartition(".")[0]) for path in site.paths}
    if len(parents) > 1:
        raise Unprovable(f"it is shared: {', '.join(site.paths)}")
    names = site.path.split(".")
    problem = ""
    for depth, parent in enumerate(reversed(site.above), 1):
        path = ".".join(names[-depth:])
        if any(map(is_watched, way_to(parent, path)[:-1])):
            raise Unprovable("a module around it, which its result leaves, has hooks")
        fused = parent.__dict__.get(SHUFFLES, ())
        if path in fused:
            raise Unprovable("already adopted")
        if type(parent).forward is nn.Module.forward:  # a list, which is not called
            continue
        try:
            rewritten(parent, (*fused, path))
            return parent, path
        except Returned as returned:
            problem = str(returned)
    raise Unprovable(problem)


def _swap(site: Site) -> tuple[str, Change]:
    parent, path = _place(site)
    parent_path = site.path[: -len(path)].rstrip(".")
    by = f"pixel_shuffle_add, in the forward of its {type(parent).__name__}"
    return by, Fusion(parent_path, parent, path)


RULE = Rule(_what, _why_not, _swap)
