"""Weights inside other dictionaries and under longer names, as training programs and wrappers of modules save them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .weights import CheckpointError

# What stands in a name anywhere: torch.compile, FSDP and activation checkpointing of a part of the model.
INSERTED = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# A parameter's name, published or own, after a prefix such as "module." (DDP) or "ema_model.".
NAME = re.compile(r"(?:^|\.)((?:stages|branches)\.\d+\..+)", re.DOTALL)
DEEPEST = 8  # dictionaries inside each other

logger = logging.getLogger(__name__)


def unwrapped(state: Mapping[str, Any], source: str, key: str | None = None) -> dict[str, Any]:
    """Find the one set of weights in a dictionary, such as ``{"ema": {"module.stages.0...": tensor}, "step": 3}``.

    Args:
        source: what messages call it.
        key: the set to take, as the message over several calls it or the first part of that, for example ``"ema"``.

    Returns:
        The set under plain names; the dictionary itself where none is found.

    Raises:
        CheckpointError: there are several and no ``key``, or not exactly one under ``key``.
    """
    found: dict[str, dict[str, Any]] = {}
    _collect(state, "", found, set())
    names = sorted(found)
    if key is not None:
        names = [name for name in names if name == key or name.startswith(f"{key}.")]
        if not names:
            there = ", ".join(sorted(name for name in found if name)) or "none, its weights have no key"
            raise CheckpointError(f"{source} has no weights under the key {key!r}; keys of weights: {there}")
    if len(names) > 1:
        shown = ", ".join(name or "(none)" for name in names)
        raise CheckpointError(f"{source} holds weights under several keys: {shown}; name one (--key, or run.init_key)")
    if not names:
        return dict(state)
    (name,) = names
    if name:
        logger.info("%s: read the weights under the key %s", source, name)
    return found[name]


def _collect(tree: Mapping[Any, Any], path: str, found: dict[str, dict[str, Any]], seen: set[int]) -> None:
    """Add the sets of weights in ``tree`` and the dictionaries in it to ``found``, by their keys."""
    if id(tree) in seen:  # a pickle may hold cycles
        return
    seen.add(id(tree))
    values = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and path.count(".") < DEEPEST:
            _collect(value, f"{path}{name}.", found, seen)
        if isinstance(name, str):
            values[INSERTED.sub("", name)] = value
    matches = filter(None, map(NAME.search, values))
    prefixes = {match.string[: match.start(1)] for match in matches}
    for prefix in prefixes:
        others = [other for other in prefixes if len(other) > len(prefix)]
        weights = {
            name.removeprefix(prefix): value
            for name, value in values.items()
            if name.startswith(prefix) and not any(name.startswith(other) for other in others)
        }
        if any(isinstance(value, Tensor) for value in weights.values()):  # and not an optimizer's state by name
            found[(path + prefix).rstrip(".")] = weights
