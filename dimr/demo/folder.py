"""What lies where in the demo's output."""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class DemoFolder:
    root: Path

    @property
    def state(self) -> Path:
        """The run's whole state, for ``--resume``."""
        return self.root / "training_state.pt"

    @property
    def checkpoint(self) -> Path:
        """The averaged weights, as ``dimr sample`` reads them."""
        return self.root / "checkpoint"

    @property
    def samples(self) -> Path:
        return self.root / "samples.png"

    @property
    def losses(self) -> Path:
        return self.root / "losses.png"

    @property
    def report(self) -> Path:
        return self.root / "report.json"
