"""A run as a readable file: model, data, training, and how the work is done."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import DiMRConfig
from ..data.errors import DataError
from ..data.spec import DataSpec
from ..optional import require
from ..variants import model_config
from .parallel import check_strategy
from .settings import TrainingSettings
from .tables import RecipeError, build, refuse_unknown

SHIPPED = Path(__file__).parents[1] / "recipes"
TABLES = ("model", "data", "training", "run")


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """How the work is done. All of this may differ in a resumed run.

    Attributes:
        device_batch: images that a process takes at a time; passes are added up to the training's ``batch_size``.
        strategy: of several processes, "ddp" (the whole state in each) or "fsdp" (a share in each).
        workers: processes that read data for each process that trains.
        save_every: steps from checkpoint to checkpoint.
        keep: how many checkpoints stay.
        log_every: steps from one line of scalars to the next.
        sample_every: steps from one grid of samples to the next; 0 draws none.
        sample_classes, sample_columns, sample_steps, sample_guidance: what a grid shows: the first classes, a row to
            each, and how it is drawn.
        decoder: folder of an autoencoder of diffusers, for sample grids of a model of latents.
        deterministic: take deterministic algorithms on a GPU, slower where they are.
        tensorboard: write scalars for TensorBoard where it is installed.
        wandb: write them to Weights & Biases; it must be installed.
    """

    device_batch: int = 64
    strategy: str = "ddp"
    workers: int = 4
    save_every: int = 5000
    keep: int = 3
    log_every: int = 100
    sample_every: int = 0
    sample_classes: int = 5
    sample_columns: int = 10
    sample_steps: int = 50
    sample_guidance: float = 0.0
    decoder: str = ""
    deterministic: bool = False
    tensorboard: bool = True
    wandb: bool = False

    def __post_init__(self) -> None:
        check_strategy(self.strategy)
        for name in (
            "device_batch", "save_every", "keep", "log_every", "sample_classes", "sample_columns", "sample_steps",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("workers", "sample_every", "sample_guidance"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class Recipe:
    model: DiMRConfig
    data: DataSpec
    training: TrainingSettings
    run: RunSettings

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {
            "model": self.model.to_dict(),
            "data": self.data.to_dict(),
            "training": self.training.to_dict(),
            "run": dataclasses.asdict(self.run),
        }

    def passes(self, world_size: int) -> int:
        """Of each process to a step.

        Raises:
            RecipeError: the batch cannot be divided so.
        """
        total, at_once = self.training.batch_size, self.run.device_batch * world_size
        if total % at_once:
            raise RecipeError(
                f"training.batch_size = {total} must be a multiple of run.device_batch = {self.run.device_batch} "
                f"times {world_size} process{'es' if world_size > 1 else ''}"
            )
        return total // at_once


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def load_recipe(name: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, or the named one that comes with the package.

    Args:
        overrides: such as ``training.batch_size=64``; the value is TOML, or else text.

    Raises:
        RecipeError: there is no such recipe, or it cannot be used.
    """
    path = Path(name)
    if not path.is_file() and path.suffix != ".toml" and (SHIPPED / f"{name}.toml").is_file():
        path = SHIPPED / f"{name}.toml"
    if not path.is_file():
        raise RecipeError(f"no recipe file {name}; the recipes that come along are {', '.join(list_recipes())}")
    toml = _toml()
    try:
        tables = toml.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, UnicodeDecodeError
        raise RecipeError(f"{path} is not TOML: {error}") from error
    for override in overrides:
        _override(tables, override)
    return parse_recipe(tables, path.name)


def parse_recipe(tables: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """A recipe from its tables ``model``, ``data``, ``training`` and ``run``."""
    refuse_unknown(tables, list(TABLES), source)
    for name in TABLES:
        if not isinstance(tables.get(name, {}), Mapping):
            raise RecipeError(f"{source}: {name} must be a table, got {tables[name]!r}")
    return Recipe(
        _model(tables.get("model", {}), f"{source}: model"),
        _data(tables.get("data", {}), f"{source}: data"),
        build(TrainingSettings, tables.get("training", {}), f"{source}: training"),
        build(RunSettings, tables.get("run", {}), f"{source}: run"),
    )


def _model(table: Mapping[str, Any], where: str) -> DiMRConfig:
    """The model called ``name`` with the table's other keys for fields, or one made of them alone."""
    fields = {key: value for key, value in table.items() if key != "name"}
    try:
        return model_config(table["name"], **fields) if "name" in table else DiMRConfig.from_dict(fields)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{where}: {error}") from error


def _data(table: Mapping[str, Any], where: str) -> DataSpec:
    try:
        return DataSpec.from_dict(dict(table))
    except DataError as error:
        raise RecipeError(f"{where}: {error}") from error


def _toml() -> Any:
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    return require(name, "train", "reading recipes")


def _override(tables: dict[str, Any], text: str) -> None:
    place, equals, value = text.partition("=")
    keys = place.strip().split(".")
    if not equals or len(keys) != 2:
        raise RecipeError(f"--set: wanted TABLE.KEY=VALUE such as training.batch_size=64, got {text!r}")
    table = tables.setdefault(keys[0], {})
    if not isinstance(table, dict):
        raise RecipeError(f"--set: {keys[0]} is not a table")
    table[keys[1]] = _value(value.strip())


def _value(text: str) -> Any:
    toml = _toml()
    try:
        return toml.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
