"""Swaps layers of other people's models for this package's operators, where they are tested equal."""

from .ada_norm import adopt_ada_norm, output_error
from .rules import adopt
from .swap import AdoptionReport, Left, Swapped
from .time_norms import adopt_time_norms

__all__ = ["AdoptionReport", "Left", "Swapped", "adopt", "adopt_ada_norm", "adopt_time_norms", "output_error"]
