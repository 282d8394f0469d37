"""Documentation: examples run, commands parse, quoted messages exist, and the site needs no network."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .support.examples import PAGES, blocks, commands, run_page
from .support.messages import texts

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TOOLS = ("build", "mkdocs")  # which need not be installed here
OPTIONAL = ("diffusers", "timm", "torchvision")  # other people's models


def with_examples() -> list[object]:
    """List the pages with examples; those that import other libraries' models are slow."""
    found = [page for page in PAGES if blocks(page, "python")]
    slow = [any("timm" in code or "diffusers" in code for _, code in blocks(page, "python")) for page in found]
    return [
        pytest.param(page, id=page.name, marks=[pytest.mark.slow] if takes_long else [])
        for page, takes_long in zip(found, slow, strict=True)
    ]


@pytest.mark.parametrize("page", with_examples())
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        run_page(page)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(f"{error.name} is not installed")


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_commands_parse(page):
    """Parse the page's ``dimr ...`` and ``python -m ...`` commands."""
    from dimr.cli import build_parser

    for words in commands(page):
        if words[0] == "dimr":
            build_parser().parse_args(words[1:])
        elif words[:2] == ["python", "-m"]:
            known = words[2] in TOOLS or importlib.util.find_spec(words[2])
            assert known, f"{page.name}: there is no module {words[2]}"
        else:
            assert (ROOT / words[0]).exists(), f"{page.name}: there is no {words[0]}"


OWN, _, FOREIGN = (DOCS / "troubleshooting.md").read_text(encoding="utf-8").partition("## Messages of other software")
QUOTED = [match[2] for match in re.finditer(r"^### (`+) ?(.+?) ?\1$", OWN, flags=re.MULTILINE)]


def test_there_are_messages():
    assert len(QUOTED) > 30
    assert len(re.findall(r"^### `", FOREIGN, flags=re.MULTILINE)) >= 3


@pytest.fixture(scope="module")
def sources() -> list[str]:
    return list(texts())


@pytest.mark.parametrize("message", QUOTED)
def test_message_is_in_the_sources(message, sources):
    """Look the message up; ``…`` stands for one value or, at the end, for whatever follows."""
    wanted = message.strip(" …")
    assert any(wanted in text for text in sources), f"no source says {wanted!r}"


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_reference_has_every_public_name():
    import dimr
    import dimr_kernels as dk

    for package, names in (
        ("dimr", dimr.__all__),
        ("dimr_kernels", set(dk.__all__) - {"functional", "inference"}),
        ("dimr_kernels.functional", dk.functional.__all__),
    ):
        page = DOCS / "reference" / f"{package.partition('.')[0]}.md"
        shown = page.read_text(encoding="utf-8").splitlines()
        assert [name for name in names if f"::: {package}.{name}" not in shown] == [], f"missing in {page.name}"


def test_operators_page_has_every_function():
    import dimr_kernels as dk

    page = (DOCS / "operators.md").read_text(encoding="utf-8")
    assert [name for name in dk.functional.__all__ if f"`functional.{name}`" not in page] == []


def test_versions_agree():
    import dimr_kernels as dk

    for name, line in (
        ("pyproject.toml", f'version = "{dk.__version__}"'),
        ("CITATION.cff", f"version: {dk.__version__}"),
        ("CHANGELOG.md", f"## [{dk.__version__}]"),
    ):
        assert f"\n{line}" in (ROOT / name).read_text(encoding="utf-8"), f"{name} does not say {line!r}"


def test_citation():
    """Check the keys that the Citation File Format requires, and the paper."""
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "license"} <= set(citation)
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Liu", "Zeng", "He", "Yu", "Shen", "Chen"]
    assert paper["url"].endswith("2406.09416")


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")]
    assert [page for page in pages if not re.search(rf"^ +- [^#]+: {re.escape(page)}$", navigation, re.MULTILINE)] == []


@pytest.mark.slow
def test_site_builds_and_needs_no_network(tmp_path):
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings_handlers.python")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 8
    loaded = re.compile(
        r"""<(?:script|img|iframe)[^>]+src=["']?(?:https?:)?//|<link[^>]+rel=["']?(?:stylesheet|preconnect)[^>]+//"""
    )
    for page in pages:
        assert not loaded.search(page.read_text(encoding="utf-8")), f"{page} loads something from elsewhere"


def test_plot_shows_the_table():
    image = pytest.importorskip("PIL.Image")
    spec = importlib.util.spec_from_file_location("plot", DOCS / "plots" / "pixel_shuffle_cpu.py")
    assert spec is not None
    assert spec.loader is not None
    plot = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(plot)
    drawn = json.loads(image.open(plot.PICTURE).text["Description"])
    assert [tuple(row) for row in drawn[::-1]] == plot.measured()
    assert len(drawn) == 5


def test_extras_that_errors_name_exist():
    """Look up the extra in every ``require(module, extra, purpose)``, whose error tells the user to install it."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = set(re.findall(r"^(\w+) = \[", project.partition("[project.optional-dependencies]")[2], re.MULTILINE))
    calls = [
        call
        for path in (ROOT / "dimr").rglob("*.py")
        for call in re.findall(r'require\(f?"([^"]+)", "(\w+)"', path.read_text(encoding="utf-8"))
    ]
    assert len(calls) > 20
    assert [call for call in calls if call[1] not in extras] == []


def test_map_shows_the_files():
    """Compare the tree in CONTRIBUTING.md with both packages; a folder without files stands for all its files."""
    tree = re.search(r"```text\n(.+?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    assert tree is not None
    shown: list[str] = []
    parents: list[str] = []
    for line in tree[1].splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        parents = [*parents[:depth], name]
        shown.append("".join(parents))
    assert [path for path in shown if not (ROOT / path).exists()] == []
    whole = tuple(
        path for path in shown if path.endswith("/") and not any(p != path and p.startswith(path) for p in shown)
    )
    packages = [
        path.relative_to(ROOT).as_posix() for name in ("dimr", "dimr_kernels") for path in (ROOT / name).rglob("*.py")
    ]
    assert [
        path
        for path in packages
        if path not in shown and not path.startswith(whole) and not path.endswith("/__init__.py")
    ] == []


FOLDERS = ("benchmarks", "csrc", "dimr", "dimr_kernels", "docs", "examples", "findings", "tests")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "benchmarks" / "NOTES.md"], ids=lambda page: page.name)
def test_named_files_and_modules_exist(page):
    """Look up the paths and modules of this repository in inline code; a path may leave out its first folders."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    names = set(re.findall(r"`(?:python -m )?([\w./]+)[^`\n]*`", text))
    files = [path.as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*") if "." in path.name]
    paths = [name for name in names if name.endswith((".py", ".sh", ".cpp", ".cu")) and "NAME" not in name]
    assert [name for name in paths if not any(file.endswith(f"/{name}") for file in files)] == []
    folders = [name for name in names if name.startswith(tuple(f"{folder}/" for folder in FOLDERS)) and name[-1] == "/"]
    assert [name for name in folders if not (ROOT / name).is_dir()] == []
    modules = [name for name in names if name.startswith(("dimr.", "dimr_kernels.", "benchmarks.", "tests."))]
    assert [name for name in modules if not _is_importable(name)] == []


def _is_importable(name: str) -> bool:
    """Return True for a module, or for an attribute of a module or class."""
    parts = name.rstrip(".").split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[count:]:
            found = getattr(found, attribute, None)
        return found is not None
    return False
