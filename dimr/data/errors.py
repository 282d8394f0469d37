"""Errors of data sets. This file imports no NumPy, so that the command line can name the errors without it."""

from __future__ import annotations

from typing import NamedTuple

from ..utils import UserError


class DataError(UserError):
    """Data that cannot be used; the message is one line that names the file."""


class Skipped(NamedTuple):
    """Something that could not be read. ``name`` is a file, or a place in one."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class SampleError(Exception):
    """One sample, or the file that holds it, cannot be read; the others may be fine."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both, so that the error can be pickled
        self.skipped = Skipped(name, reason)
