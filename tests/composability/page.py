"""The matrix as the page's table."""

from __future__ import annotations

from .matrix import MATRIX, Mechanism
from .subjects import SUBJECTS

BEGIN, END = "<!-- matrix: begin -->\n", "<!-- matrix: end -->"


def table() -> str:
    rows = [["", *SUBJECTS], ["---"] + [":-:"] * len(SUBJECTS)]
    rows += [[_code(name), *(_mark(mechanism, s) for s in SUBJECTS)] for name, mechanism in MATRIX.items()]
    notes = [f"- {_code(name)}: {mechanism.note}" for name, mechanism in MATRIX.items() if mechanism.note]
    return "\n".join(["| " + " | ".join(row) + " |" for row in rows] + ["", *notes, ""])


def _code(name: str) -> str:
    return f"`{name}`" if name.startswith(("torch.", "copy.", "use_", "set_")) and " " not in name else name


def _mark(mechanism: Mechanism, subject: str) -> str:
    if subject in mechanism.absent:
        return "-"
    if mechanism.needs_gpu:
        return "GPU"
    refused = [form for form in ("eager", "fused") if (subject, form) in mechanism.refused]
    return {0: "yes", 1: "eager", 2: "error"}[len(refused)] if refused != ["eager"] else "fused"
