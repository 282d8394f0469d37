"""Ways to damage a file."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from hypothesis import strategies as st


class Payload:
    """Object that creates a file when it is unpickled without restrictions."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {shlex.quote(str(self.path))}",)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """The file cut off, with bytes changed, with bytes put in or taken out, or none of its own."""
    data = bytearray(whole)
    place = st.integers(0, len(data) - 1)
    kind = draw(st.sampled_from(["cut", "change", "splice", "foreign"]))
    if kind == "cut":
        return bytes(data[: draw(place)])
    if kind == "change":
        for at in draw(st.lists(place, min_size=1, max_size=8)):
            data[at] = draw(st.integers(0, 255))
    elif kind == "splice":
        at = draw(place)
        data[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    else:
        return draw(st.binary(max_size=64))
    return bytes(data)
