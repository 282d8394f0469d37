"""What could not be read, counted, up to a limit."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from .errors import DataError, Skipped

logger = logging.getLogger(__name__)


class SkipLog:
    """Attributes:
    limit: how many files may be unreadable; 0 makes the first one an error.
    files: reasons by name. A file counts once, however often it is met.
    count: how many samples were skipped for them.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.files: dict[str, str] = {}
        self.count = 0

    def record(self, skipped: Iterable[Skipped]) -> None:
        """Each file is logged when it is met first.

        Raises:
            DataError: there are more unreadable files than the limit.
        """
        for one in skipped:
            self.count += 1
            if one.name in self.files:
                continue
            self.files[one.name] = one.reason
            if self.limit == 0:
                raise DataError(str(one))
            if len(self.files) > self.limit:
                raise DataError(f"more than max_skipped = {self.limit} files are unreadable, the last is {one}")
            logger.warning("skipped (%d of at most %d) %s", len(self.files), self.limit, one)

    def state_dict(self) -> dict[str, Any]:
        return {"files": dict(self.files), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.files = dict(state["files"])
        self.count = int(state["count"])
