"""Words for errors."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Of the error's message, for a message of one line; other libraries write pages."""
    return str(error).strip().partition("\n")[0]
