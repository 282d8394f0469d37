"""Packages that only some parts need."""

from __future__ import annotations

import importlib
from types import ModuleType


class MissingPackageError(ImportError):
    """A package is missing that the part in use needs; the message says how to install it."""


def require(module: str, extra: str | None, purpose: str) -> ModuleType:
    """``importlib.import_module(module)``, or an error that names the extra that brings it, if one does."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise  # the package is there, something it needs itself is not
        message = f"{purpose} needs {package}, which is not installed: pip install 'dimr_kernels[{extra}]'"
        if extra is None:
            message = f"{purpose} needs {package}, which is not installed: pip install {package}"
        raise MissingPackageError(message, name=error.name) from error
