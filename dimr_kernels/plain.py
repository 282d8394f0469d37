"""Moved to ``checks``; deleted once nothing imports it."""

from .checks import hook_names as hooks_of  # noqa: F401
from .checks import is_call_modified as is_watched  # noqa: F401
from .checks import is_plain_linear, is_plain_tensor  # noqa: F401
