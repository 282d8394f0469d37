"""The tests, the matrix and the page ``docs/composability.md`` agree."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import dimr_kernels as dk
import tests.composability

from .cells import TESTED
from .matrix import MATRIX
from .page import BEGIN, END, lists
from .subjects import SUBJECTS

PAGE = Path(__file__).parents[2] / "docs" / "composability.md"


def test_every_mechanism_has_a_test():
    for module in pkgutil.iter_modules(tests.composability.__path__):
        if module.name.startswith("test_"):
            importlib.import_module(f"tests.composability.{module.name}")
    assert set(MATRIX) == TESTED


LINEAR = {"linear", "apply_linear"}
"""torch's own under every mechanism: only plain calls of large products go elsewhere (test_linear.py)."""


def test_every_operator_is_a_subject():
    assert sorted(s.operator for s in SUBJECTS.values() if s.operator) == sorted({*dk.functional.__all__} - LINEAR)


def test_page_shows_the_lists():
    """Compare the lists. After a change of the matrix, write ``page.lists()`` between the page's two marks."""
    text = PAGE.read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0] == lists()
