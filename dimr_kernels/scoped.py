"""Moved to ``dispatch``; deleted once nothing imports it."""

from .dispatch import ScopedSetting, ScopedValue, constant_when_traced, extension_status  # noqa: F401
