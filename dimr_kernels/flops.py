"""Formulas for ``torch.utils.flop_counter``, which counts operators that it does not know as nothing.

As torch does, they count matrix products and convolutions, two for each multiply-add; norms, activations and sums count
nothing. The counter's module imports Triton, so it is not imported here: formulas wait until someone else does.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

COUNTER = "torch.utils.flop_counter"
Formula = Callable[..., int]
"""Called with an operator's arguments, tensors as their shapes, and ``out_shape``, those of its results."""
_waiting: list[tuple[Any, Formula]] = []


def register_flops(operator: Any, formula: Formula) -> None:
    """Let the counter count ``operator``, an ``OpOverloadPacket``."""
    _waiting.append((operator, formula))
    if COUNTER in sys.modules:
        _register_all(sys.modules[COUNTER])


def _register_all(counter: Any) -> None:
    while _waiting:
        operator, formula = _waiting.pop()
        counter.register_flop_formula(operator)(formula)


class _CounterFinder(MetaPathFinder):
    """Registers the formulas when the counter is imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register_all(module)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]  # this spec's own loader
        return spec


if COUNTER not in sys.modules:
    sys.meta_path.insert(0, _CounterFinder())
