"""Strings in the sources, with ``…`` in place of values that are filled in."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHON = (ROOT / "dimr", ROOT / "dimr_kernels")
GAP = "…"


def texts() -> Iterator[str]:
    for path in [ROOT / "setup.py", *(path for folder in PYTHON for path in folder.rglob("*.py"))]:
        yield from _strings(ast.parse(path.read_text(encoding="utf-8")))
    yield re.sub(r"\$(ENV)?\{[^}]*\}", GAP, (ROOT / "CMakeLists.txt").read_text(encoding="utf-8"))


def _strings(tree: ast.AST) -> Iterator[str]:
    """Literals that stand side by side are one string to Python already."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
