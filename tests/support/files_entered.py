"""Count the files that a call enters."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


def files_entered(function: Callable[[], Any], *packages: ModuleType) -> set[str]:
    """List the files of the packages in which a warm call of ``function`` runs any Python function."""
    entered: set[str] = set()

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            entered.add(frame.f_code.co_filename)

    function()  # warm: imports, caches
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    found = set()
    for package in packages:
        folder = Path(str(package.__file__)).parent
        paths = [Path(name) for name in entered]
        found |= {path.relative_to(folder.parent).as_posix() for path in paths if path.is_relative_to(folder)}
    return found
