"""Moved to ``ops.pixel_shuffle``; deleted once nothing imports it."""

from .ops.pixel_shuffle import check_shuffle, check_shuffled  # noqa: F401
