"""What an adoption did to a model, and the way back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from .swap import Change


@dataclass(frozen=True)
class Swapped:
    """A layer that was swapped."""

    path: str
    """Its name in ``model.named_modules()``, the first where it has several; "" is the model itself."""
    what: str
    """What it was, as "nn.Conv2d 7x7 depthwise"."""
    by: str
    """What computes it now."""


@dataclass(frozen=True)
class Left:
    """A layer of a kind that can be swapped, which was not."""

    path: str
    what: str
    why: str


@dataclass
class AdoptionReport:
    """What was swapped, what was not and why. ``print(report)`` shows a short table; ``undo()`` is the way back."""

    swapped: list[Swapped] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What else was changed: a hook, the layout of inputs, how well something was fitted."""
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
    """One line for all layers of one kind and one fate, with the first of them as an example."""
    groups: dict[tuple[str, str], list[str]] = {}
    for path, what, fate in rows:
        groups.setdefault((what, fate), []).append(path or "(the model)")
    width = max((len(what) for what, _ in groups), default=0)
    return [
        f"  {title:7} {len(paths):4} x {what:{width}}  {fate}  [{paths[0]}{', ...' if len(paths) > 1 else ''}]"
        for (what, fate), paths in groups.items()
    ]
