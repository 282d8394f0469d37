"""Words for errors."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Of the error's message, for a message of one line; other libraries write pages. What only announces the next
    line takes it along."""
    line, _, rest = str(error).strip().partition("\n")
    return f"{line} {rest.strip().partition(chr(10))[0]}".strip() if line.endswith(":") else line
