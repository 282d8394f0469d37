"""The operators, found by their folders: what is asked of each of them need not be listed anywhere.

A folder of ``ops`` is an operator if it has a ``functional.py``; the others hold what operators share. Its rooms:

- ``eager.py``: the definition;
- ``triton.py`` or ``cuda.py``: the fused form, with ``cases()`` for analysis where it is Triton's;
- ``op.py``: the registration with torch;
- ``functional.py``: the public functions, and ``FUSED_FORMS``, function -> backend of its fused form;
- ``module.py``: the modules, and ``TRITON_MODULES``, those that launch Triton kernels themselves;
- ``into.py``: a form without a gradient that writes where it is told, for ``dimr_kernels.inference``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from types import ModuleType

PACKAGE = __package__


@lru_cache(maxsize=1)
def operators() -> tuple[str, ...]:
    """Names of the folders, sorted."""
    folders = (
        module.name for module in pkgutil.iter_modules(importlib.import_module(PACKAGE).__path__) if module.ispkg
    )
    return tuple(sorted(name for name in folders if has_room(name, "functional")))


def has_room(operator: str, room: str) -> bool:
    """Whether the folder has a file of this name; looking does not import it."""
    return find_spec(f"{PACKAGE}.{operator}.{room}") is not None


def rooms(room: str) -> Iterator[ModuleType]:
    """The modules of this name, of every operator that has one."""
    for operator in operators():
        if has_room(operator, room):
            yield importlib.import_module(f"{PACKAGE}.{operator}.{room}")
