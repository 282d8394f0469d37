"""Words for errors."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Of the error's message, for a message of one line; other libraries write pages.

    What only announces the next line takes it along.
    """
    line, _, rest = str(error).strip().partition("\n")
    if not line.endswith(":"):
        return line
    announced = rest.strip().partition("\n")[0]
    return f"{line} {announced}".strip()
