"""One process at a time writes to a folder."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

NAME = ".lock"


class OccupiedError(OSError):
    """Another process writes to the folder."""


@contextlib.contextmanager
def occupied(folder: Path) -> Iterator[None]:
    """Inside the block no other process gets into a block of this folder. Missing folders are made.

    The system lets go of the folder when the process ends, however it does, and worker processes that it forked do not
    hold on to it. Where the system or the file system knows no locks there is none.

    Raises:
        OccupiedError: another process is inside.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / NAME).open("w") as file:
        try:
            _lock(file.fileno())
        except (BlockingIOError, PermissionError) as error:
            raise OccupiedError(
                f"another process writes to {folder}: end it first "
                f"(where torchrun itself was killed, its workers may go on)"
            ) from error
        except OSError:
            pass  # no locks on this file system
        yield


def _lock(file: int) -> None:
    if importlib.util.find_spec("fcntl") is not None:  # not on Windows
        fcntl = importlib.import_module("fcntl")
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
