"""The matrix as lists for the page: mechanisms that work, exceptions, and mechanisms that need a GPU."""

from __future__ import annotations

from .matrix import MATRIX, Mechanism

BEGIN, END = "<!-- matrix: begin -->\n", "<!-- matrix: end -->"


def lists() -> str:
    working = {name: m for name, m in MATRIX.items() if not m.refused and not m.needs_gpu}
    refused = {name: m for name, m in MATRIX.items() if m.refused}
    on_gpu = {name: m for name, m in MATRIX.items() if m.needs_gpu}
    return "\n".join(
        [
            "Exceptions, where the other form raises an error that says so:", "", *_bullets(refused), "",
            "Works:", "", *_bullets(working), "",
            "Tested where there is a GPU:", "", *_bullets(on_gpu), "",
        ]
    )  # fmt: skip


def _bullets(mechanisms: dict[str, Mechanism]) -> list[str]:
    return [f"- {_code(name)}{': ' if m.note else ''}{m.note}" for name, m in mechanisms.items()]


def _code(name: str) -> str:
    return f"`{name}`" if name.startswith(("torch.", "copy.", "use_", "set_")) and " " not in name else name
