"""Swaps layers of other people's models for this package's operators, where they are proved to be equal."""

from .report import AdoptionReport, Left, Swapped
from .run import adopt

__all__ = ["AdoptionReport", "Left", "Swapped", "adopt"]
