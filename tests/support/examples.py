"""Code and commands on the project's pages. A comment ``<!-- not run: REASON -->`` before a block leaves it out."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(<!-- not run: \S.*? -->\n+)?^```(\w+)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """Return (line, code) of each block of a language that is to be run."""
    text = page.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, match.start(3)), match[3])
        for match in BLOCK.finditer(text)
        if match[2] == language and match[1] is None
    ]


def run_page(page: Path) -> None:
    """Run the page's blocks in order; those of the README are independent, those of other pages share variables."""
    namespace: dict[str, object] = {}
    for line, code in blocks(page, "python"):
        namespace = {} if page.name == "README.md" else namespace
        exec(compile("\n" * line + code, str(page), "exec"), namespace)  # so that a traceback shows the page's line


def commands(page: Path) -> list[list[str]]:
    """Return the project's commands in shell blocks: ``dimr``, ``python -m`` and its own scripts."""
    found = []
    for _, code in blocks(page, "bash"):
        for line in re.split(r"\n|&&", code.replace("\\\n", " ")):
            words = shlex.split(line, comments=True)
            while words and "=" in words[0]:
                words.pop(0)
            if words[:1] == ["torchrun"] and "-m" in words:
                words = words[words.index("-m") + 1 :]  # torchrun ... -m dimr train ...
            if words and (words[0] == "dimr" or words[:2] == ["python", "-m"] or (ROOT / words[0]).is_file()):
                found.append(words)
    return found
