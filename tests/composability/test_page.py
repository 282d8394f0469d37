"""The tests, their table and the page ``docs/composability.md`` say the same."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import tests.composability

from .cells import TESTED
from .matrix import FORMS, MATRIX
from .page import BEGIN, END, table
from .subjects import SUBJECTS

PAGE = Path(__file__).parents[2] / "docs" / "composability.md"


def test_every_cell_has_a_test():
    for module in pkgutil.iter_modules(tests.composability.__path__):
        if module.name.startswith("test_"):
            importlib.import_module(f"tests.composability.{module.name}")
    wanted = {
        (mechanism, subject, form)
        for mechanism, facts in MATRIX.items()
        for subject in SUBJECTS
        for form in FORMS
        if subject not in facts.absent
    }
    assert wanted == TESTED


def test_page_shows_the_table():
    """After a change of the table, write ``tests.composability.page.table()`` between the page's two marks."""
    text = PAGE.read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0] == table()
