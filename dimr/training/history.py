"""A run's settings over time: ``history.json`` says from which step on each recipe was used, and what it changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.weights import CheckpointError
from ..utils import read_json

# An entry is {"step": steps done before, "changed": {"training.steps": [before, from here]}, "recipe": the tables}.
Entry = dict[str, Any]


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Compare two recipes as tables: ``TABLE.KEY`` to the pair of values, where they differ. A missing one is None."""
    found = {}
    for table in {**before, **after}:
        old, new = before.get(table, {}), after.get(table, {})
        for key in {**old, **new}:
            if old.get(key) != new.get(key):
                found[f"{table}.{key}"] = [old.get(key), new.get(key)]
    return found


def read_history(path: Path, step: int) -> list[Entry]:
    """Read the entries that begin before ``step``, oldest first; none if there is no file.

    Later ones are those of steps that are lost or given up.

    Raises:
        CheckpointError: it is damaged.
    """
    if not path.is_file():
        return []
    try:
        entries = read_json(path)
        for entry in entries:
            if not (type(entry["step"]) is int and all(isinstance(table, dict) for table in entry["recipe"].values())):
                raise ValueError("wanted a step and the tables of a recipe in each entry")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is not the history of a run: {error}; without this file the run goes on too"
        ) from error
    return [entry for entry in entries if entry["step"] < step]


def continued(entries: list[Entry], step: int, before: Mapping[str, Any], recipe: Mapping[str, Any]) -> list[Entry]:
    """Extend the entries by a run that goes on after ``step`` steps, where the settings were ``before``."""
    kept = entries or [{"step": 0, "changed": {}, "recipe": before}]
    changed = differences(before, recipe)
    return [*kept, {"step": step, "changed": changed, "recipe": recipe}] if changed else kept
