"""A run as a readable file: model, data, training, and how the work is done."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..data.errors import DataError
from ..data.spec import DataSpec
from ..distributed import check_strategy
from ..model.config import DiMRConfig
from ..model.layers import check_checkpointing
from ..model.variants import model_config
from ..utils import require

# Dataclasses from tables of plain values, strictly: what is wrong is named.


T = TypeVar("T")


class RecipeError(Exception):
    """A recipe that cannot be used, said in one line that names the place."""


def build(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """The dataclass with the table's values for fields.

    Raises:
        RecipeError: a key that is not a field, a missing field, a value of another type, or one that the class refuses.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    refuse_unknown(table, list(fields), where)
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in table:
            raise RecipeError(f"{where}: the key {name!r} is missing")
    kinds = typing.get_type_hints(cls)
    try:
        return cls(**{name: _converted(kinds[name], value, f"{where}.{name}") for name, value in table.items()})
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{where}: {error}") from error


def refuse_unknown(table: Mapping[str, Any], known: list[str], where: str) -> None:
    for name in table:
        if name not in known:
            raise RecipeError(f"{where}: unknown key {name!r}; known are {', '.join(known)}")


def _converted(kind: Any, value: Any, where: str) -> Any:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kind = next(option for option in typing.get_args(kind) if option is not types.NoneType)
    if typing.get_origin(kind) is tuple:
        return _tuple(typing.get_args(kind), value, where)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise RecipeError(f"{where} must be {_NAMES[kind]}, got {value!r}")
    return value


def _tuple(kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    endless = kinds[-1] is Ellipsis
    if not isinstance(value, (list, tuple)) or not (endless or len(value) == len(kinds)):
        count = "" if endless else f"{len(kinds)} "
        raise RecipeError(f"{where} must be a list of {count}values, got {value!r}")
    each = [kinds[0]] * len(value) if endless else kinds
    return tuple(_converted(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(each, value, strict=True)))


_NAMES = {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false"}


# What decides a run beside the model's configuration and the data.


PRECISIONS = ("float32", "bfloat16")
LEARNING_RATE_SCHEDULES = ("cosine", "constant")
DECAYING = ("matrices", "all but gates")
# Of no account for the numbers, up to rounding: these may differ in a resumed run.
FREE = ("checkpointing", "compile")


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """Attributes:
    batch_size: images a step, over all processes and passes.
    learning_rate: after ``warmup_steps`` steps of linear growth.
    learning_rate_schedule: "cosine" falls to zero at the last step, "constant" stays.
    decaying: what ``weight_decay`` acts on, see :func:`dimr.training.optimizer.parameter_groups`.
    ema_ramp: whether the average forgets faster at first, see :class:`~dimr.training.ema.ExponentialMovingAverage`.
    class_dropout: share of the images that train the unconditional class.
    loss_weights: of the branches, lowest resolution first; None is the paper's ``1 / 4**(levels below the finest)``.
    max_gradient_norm: longer gradients are shortened to it; 0 leaves them as they are.
    precision: "bfloat16" runs the model under autocast; weights, statistics, loss and optimizer stay float32.
    checkpointing: "none", "blocks" or "selective", see :meth:`dimr.DiMR.set_checkpointing`.
    compile: run the model through torch.compile. This and ``checkpointing`` may differ in a resumed run.

    Raises:
        ValueError: a value that does not fit, by name.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    ema_decay: float
    weight_decay: float = 0.03
    betas: tuple[float, float] = (0.9, 0.99)
    class_dropout: float = 0.1
    max_gradient_norm: float = 1.0
    seed: int = 0
    precision: str = "float32"
    checkpointing: str = "none"
    compile: bool = False
    learning_rate_schedule: str = "cosine"
    decaying: str = "matrices"
    ema_ramp: bool = True
    loss_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name, choices in (
            ("precision", PRECISIONS), ("learning_rate_schedule", LEARNING_RATE_SCHEDULES), ("decaying", DECAYING),
        ):  # fmt: skip
            if getattr(self, name) not in choices:
                wanted = ", ".join(map(repr, choices))
                raise ValueError(f"{name} must be one of {wanted}; got {getattr(self, name)!r}")
        check_checkpointing(self.checkpointing)
        for name, least, most in (
            ("steps", 1, 2**31), ("batch_size", 1, 2**31), ("warmup_steps", 0, 2**31), ("seed", 0, 2**63 - 1),
        ):  # fmt: skip
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be from {least} to {most}, got {getattr(self, name)}")
        for name in ("learning_rate", "weight_decay", "max_gradient_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)}")
        for name, decay in (("ema_decay", self.ema_decay), *(("betas", beta) for beta in self.betas)):
            if not 0 <= decay < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {decay}")
        if not 0 <= self.class_dropout <= 1:
            raise ValueError(f"class_dropout must be from 0 to 1, got {self.class_dropout}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainingSettings:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)

    def deciding(self) -> dict[str, Any]:
        """Those that a resumed run must share."""
        return {k: v for k, v in self.to_dict().items() if k not in FREE}


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
