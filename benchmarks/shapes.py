"""Shapes to measure, taken from the configurations of the paper's models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from dimr.model.config import DiMRConfig
from dimr.model.variants import VARIANTS

SCOPES = ("target", "sweep", "large")
PAPER = ("dimr-m-3r", "dimr-l-3r", "dimr-xl-2r", "dimr-xl-3r", "dimr-g-2r")
# The models, and the batch, that the targets speak of (``benchmarks.targets``).
TARGET = ("dimr-m-3r", "dimr-xl-2r", "dimr-xl-3r")
TARGET_BATCH = 64
BATCHES = (1, 8, 64, 256)


class Tokens(NamedTuple):
    """``[batch, tokens, width]``"""

    batch: int
    tokens: int
    width: int


class Image(NamedTuple):
    """``[batch, side, side, width]``"""

    batch: int
    side: int
    width: int


@dataclass(frozen=True)
class Shapes:
    """One operator's shapes by scope. ``cpu`` stands for the target where there is no GPU: seconds on two cores."""

    target: tuple[Any, ...]
    sweep: tuple[Any, ...]
    large: tuple[Any, ...]
    cpu: tuple[Any, ...]

    @classmethod
    def of_layers(
        cls, layers: Callable[[tuple[str, ...], int], list[Any]], large: tuple[Any, ...], cpu: tuple[Any, ...]
    ) -> Shapes:
        """Make the shapes of ``layers(models, batch)``."""
        target = tuple(dict.fromkeys(layers(TARGET, TARGET_BATCH)))
        return cls(target, tuple(layer for batch in BATCHES for layer in layers(PAPER, batch)), large, cpu)

    def select(self, choice: str | None, device_type: str) -> Iterator[tuple[str, Any]]:
        """Scope and shape, none twice. ``choice``: a scope or "all"; None is "all" on a GPU, "target" on a CPU."""
        on_cpu = device_type == "cpu"
        choice = choice or ("target" if on_cpu else "all")
        target = self.cpu if on_cpu else self.target
        seen: set[Any] = set()
        for scope, shapes in (("target", target), ("sweep", self.sweep), ("large", self.large)):
            if choice in (scope, "all"):
                yield from ((scope, shape) for shape in dict.fromkeys(shapes) if shape not in seen)
            seen.update(shapes)


def configurations(names: Iterable[str]) -> list[DiMRConfig]:
    return [VARIANTS[name] for name in names]


def tokens(config: DiMRConfig, branch: int) -> int:
    """Rows of the branch's matrices per sample: its pixels, and in the lowest one the class token."""
    return config.resolutions[branch] ** 2 + (branch == 0)


def branches(names: Iterable[str], norm: str | None = None) -> list[tuple[int, int]]:
    """Tokens and width of the branches of these models. ``norm``: of its models only."""
    chosen = [config for config in configurations(names) if norm in (None, config.norm)]
    return list(dict.fromkeys((tokens(config, i), D) for config in chosen for i, D in enumerate(config.dims)))


def cascades(names: Iterable[str]) -> list[tuple[int, int, int]]:
    """Side and width of what a branch hands to the next one, and the next one's width."""
    found = []
    for config in configurations(names):
        for i, D in enumerate(config.dims[1:]):
            found.append((config.resolutions[i], config.dims[i] * (config.blocks[i] + 1), D))
    return list(dict.fromkeys(found))


def images(names: Iterable[str]) -> list[tuple[int, int]]:
    """Side and width of the ConvNeXt branches."""
    found = [
        pair for config in configurations(names) for pair in zip(config.resolutions[1:], config.dims[1:], strict=True)
    ]
    return list(dict.fromkeys(found))


def mlps(names: Iterable[str]) -> list[tuple[int, int]]:
    """Tokens and hidden width of the MLPs."""
    chosen = configurations(names)
    return list(dict.fromkeys((tokens(config, i), D) for config in chosen for i, D in enumerate(config.hidden_dims)))
