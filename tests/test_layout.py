"""The layout of the packages: the direction of imports, the length of files, the first words of docstrings."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("dimr", "dimr_kernels")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
WITH_TESTS = FILES + sorted(path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
MOST_LINES = 700
OPENINGS = ("Of", "What", "Whether", "Where", "How", "Which")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}
EXTENSION = "dimr_kernels._C"  # compiled: it has no source here


def executed_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Walk the tree, including functions and their lazy imports, but not what is under ``if TYPE_CHECKING:``."""
    yield node
    is_typing_only = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    for child in node.orelse if is_typing_only else ast.iter_child_nodes(node):  # type: ignore[attr-defined]
        yield from executed_nodes(child)


def imports(source: str, name: str, is_package: bool, modules: set[str]) -> set[str]:
    """List the modules among ``modules`` that the source of module ``name`` imports anywhere."""
    found: set[str] = set()
    for node in executed_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = name.split(".")[: len(name.split(".")) - node.level + is_package] if node.level else []
            target = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{target}.{alias.name}"
                found.add(submodule if submodule in modules else target)
    return found & modules - {name}


def circles(graph: dict[str, set[str]]) -> list[str]:
    """List one circle per module that is reached from itself, as ``a -> b -> a``."""
    found = []
    for start in sorted(graph):
        paths = {target: [start, target] for target in graph[start]}
        queue = list(paths)
        while queue and start not in paths:
            module = queue.pop(0)
            for target in graph[module]:
                if target not in paths:
                    paths[target] = [*paths[module], target]
                    queue.append(target)
        if start in paths:
            found.append(" -> ".join(paths[start]))
    return found


def import_graph() -> dict[str, set[str]]:
    known = {*MODULES, EXTENSION}
    graph: dict[str, set[str]] = {EXTENSION: set()}
    for name, path in MODULES.items():
        graph[name] = imports(path.read_text(encoding="utf-8"), name, path.name == "__init__.py", known)
    return graph


class TestTheCheckOfImports:
    MODULES = frozenset({"p", "p.a", "p.b", "p.sub", "p.sub.c"})

    @pytest.mark.parametrize(
        ("source", "name", "is_package", "wanted"),
        [
            ("from . import b", "p.a", False, {"p.b"}),
            ("from .b import f", "p.a", False, {"p.b"}),
            ("from ..b import f", "p.sub.c", False, {"p.b"}),
            ("from .. import b", "p.sub", True, {"p.b"}),
            ("from .c import f", "p.sub", True, {"p.sub.c"}),
            ("import p.b\nimport torch", "p.a", False, {"p.b"}),
            ("from p.sub import c, g", "p.a", False, {"p.sub.c", "p.sub"}),
            ("def f():\n    from .b import g", "p.a", False, {"p.b"}),
            ("if TYPE_CHECKING:\n    from .b import g\nelse:\n    from . import sub", "p.a", False, {"p.sub"}),
            ("if typing.TYPE_CHECKING:\n    from .b import g", "p.a", False, set()),
        ],
    )
    def test_imports(self, source, name, is_package, wanted):
        assert imports(source, name, is_package, set(self.MODULES)) == wanted

    def test_circles(self):
        assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
        assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b -> c -> b", "c -> b -> c"]


def test_no_file_imports_in_a_circle():
    graph = import_graph()
    assert sum(map(len, graph.values())) > len(graph)  # imports are found at all
    assert circles(graph) == []


def test_the_kernels_know_nothing_of_the_model():
    for name, targets in import_graph().items():
        if name.startswith("dimr_kernels"):
            assert not [target for target in targets if target.partition(".")[0] == "dimr"], name


def test_length():
    lines = {module_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert not {name: count for name, count in lines.items() if count > MOST_LINES}


def test_docstrings_open_with_what_the_thing_does():
    found = []
    for path in WITH_TESTS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                words = (ast.get_docstring(node) or "").split()
                if words and words[0] in OPENINGS:
                    found.append(f"{path.relative_to(ROOT)}, {getattr(node, 'name', 'module')}: {' '.join(words[:8])}")
    assert not found, "\n".join(found)
