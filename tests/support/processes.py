"""Processes that a test spawned."""

from __future__ import annotations

import os
import sys
from typing import NoReturn


def end_here() -> NoReturn:
    """Exit with success, without the interpreter's shutdown.

    A mesh of FSDP2 keeps the threads of its group until then, whoever destroys the group, and torch 2.13 now and then
    aborts over them ("terminate called without an active exception").
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
