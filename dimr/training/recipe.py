"""Recipes: TOML files that describe a whole run, in four tables: model, data, training and run."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoints.weights import KINDS
from ..data.errors import DataError
from ..data.spec import DataSpec
from ..distributed import check_strategy
from ..model.config import DiMRConfig
from ..model.layers import check_checkpointing
from ..model.variants import model_config
from ..settings import check_types, from_table, refuse_unknown, shown
from ..utils import UserError, require

SHIPPED = Path(__file__).parents[1] / "recipes"

PRECISIONS = ("float32", "bfloat16")
LEARNING_RATE_SCHEDULES = ("cosine", "constant")
DECAYING = ("matrices", "all but gates")
OPTIMIZERS = ("adamw", "muon")


class RecipeError(UserError):
    """A recipe that cannot be used; the message is one line that names the table and the key."""


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """Everything that determines a run's results, besides the model's configuration and the data.

    Attributes:
        steps: optimizer steps of the whole run.
        batch_size: images per step, summed over all processes and passes.
        learning_rate: peak learning rate, reached after ``warmup_steps`` steps of linear warm-up.
        learning_rate_schedule: after warm-up, "cosine" decays to zero at the last step, "constant" stays at the peak.
        decaying: parameters that ``weight_decay`` applies to, see :func:`dimr.training.optimizer.parameter_groups`.
        optimizer: "adamw", or "muon" for the matrices of the hidden layers and AdamW for the rest, with one learning
            rate and weight decay.
        ema_ramp: start the average with a smaller decay, see :class:`~dimr.training.ema.ExponentialMovingAverage`.
        class_dropout: share of the images that train the unconditional class.
        loss_weights: weight of each branch's loss, lowest resolution first; None is the paper's
            ``1 / 4**(levels below the finest)``.
        max_gradient_norm: norm to clip the gradient to; 0 does not clip.
        precision: "bfloat16" runs the model under autocast; weights, statistics, loss and optimizer stay float32.
        checkpointing: "none", "blocks" or "selective", see :meth:`dimr.DiMR.set_checkpointing`.
        compile: run the model through torch.compile.

    A resumed run may change any of them. Learning rate and averages go by the number of steps done, and ``batch_size``
    changes only how many samples a step takes next. Another ``seed`` changes noise and order from there on: the present
    epoch then has some samples twice and some not at all.

    Raises:
        TypeError, ValueError: a value that has the wrong type or is out of range, by name.
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
    optimizer: str = "adamw"

    def __post_init__(self) -> None:
        check_types(self)
        _check_choice(self, "precision", PRECISIONS)
        _check_choice(self, "learning_rate_schedule", LEARNING_RATE_SCHEDULES)
        _check_choice(self, "decaying", DECAYING)
        _check_choice(self, "optimizer", OPTIMIZERS)
        check_checkpointing(self.checkpointing)
        for name, least, most in (
            ("steps", 1, 2**31), ("batch_size", 1, 2**31), ("warmup_steps", 0, 2**31), ("seed", 0, 2**63 - 1),
        ):  # fmt: skip
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be from {least} to {most}, got {shown(getattr(self, name))}")
        _check_finite(self, "learning_rate", "weight_decay", "max_gradient_norm")
        for name, decay in (("ema_decay", self.ema_decay), *(("betas", beta) for beta in self.betas)):
            if not 0 <= decay < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {shown(decay)}")
        if not 0 <= self.class_dropout <= 1:
            raise ValueError(f"class_dropout must be from 0 to 1, got {shown(self.class_dropout)}")

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingSettings:
        """Convert :meth:`to_dict`'s result back. Settings that did not exist yet have their defaults."""
        return from_table(cls, values)


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """Settings that do not affect the results, but for ``init``, and that a resumed run may change.

    Attributes:
        init: the weights to start from, a path for :func:`~dimr.training.saved.read_weights`; "" is new ones.
        init_key: the set of weights to take from a file that holds several.
        device_batch: images per forward on each process; passes accumulate up to the training's ``batch_size``.
        strategy: with several processes, "ddp" (each has the whole state) or "fsdp" (the state is sharded).
        workers: data loading processes per training process.
        save_every: steps between checkpoints.
        keep: number of checkpoints to keep; at least two until the run ends, because only the step after a checkpoint
            shows that its weights have not diverged.
        log_every: steps between two rows of scalars.
        sample_every: steps between grids of samples; 0 draws none.
        sample_classes, sample_columns: number of classes in a grid, one per row, and of samples per class.
        sample_weights: "ema" draws grids with the average, "raw" with the weights themselves.
        sample_steps, sample_guidance: sampling steps and guidance scale of a grid.
        decoder: folder of a diffusers autoencoder, for sample grids of a model of latents.
        deterministic: use deterministic algorithms on a GPU, which can be slower.
        tensorboard: write scalars for TensorBoard if it is installed.
        wandb: log to Weights & Biases, which must be installed.

    Raises:
        TypeError, ValueError: a value that has the wrong type or is out of range, by name.
    """

    init: str = ""
    init_key: str = ""
    device_batch: int = 64
    strategy: str = "ddp"
    workers: int = 4
    save_every: int = 5000
    keep: int = 3
    log_every: int = 100
    sample_every: int = 0
    sample_classes: int = 5
    sample_columns: int = 10
    sample_weights: str = "ema"
    sample_steps: int = 50
    sample_guidance: float = 0.0
    decoder: str = ""
    deterministic: bool = False
    tensorboard: bool = True
    wandb: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        check_strategy(self.strategy)
        _check_choice(self, "sample_weights", KINDS)
        for name in (
            "device_batch", "save_every", "keep", "log_every", "sample_classes", "sample_columns", "sample_steps",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {shown(getattr(self, name))}")
        _check_finite(self, "workers", "sample_every", "sample_guidance")


def _check_choice(settings: TrainingSettings | RunSettings, name: str, choices: tuple[str, ...]) -> None:
    if getattr(settings, name) not in choices:
        wanted = ", ".join(map(repr, choices))
        raise ValueError(f"{name} must be one of {wanted}; got {getattr(settings, name)!r}")


def _check_finite(settings: TrainingSettings | RunSettings, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and at least 0, got {shown(value)}")


def _build_model(table: Mapping[str, Any]) -> DiMRConfig:
    """Build the configuration of the model called ``name`` with other fields replaced, or one from fields alone."""
    return model_config(**table) if "name" in table else DiMRConfig.from_dict(table)


TABLES: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "model": _build_model,
    "data": DataSpec.from_dict,
    "training": TrainingSettings.from_dict,
    "run": lambda table: from_table(RunSettings, table),
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The four tables of a recipe."""

    model: DiMRConfig
    data: DataSpec
    training: TrainingSettings
    run: RunSettings

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values for JSON."""
        return {
            "model": self.model.to_dict(),
            "data": self.data.to_dict(),
            "training": self.training.to_dict(),
            "run": dataclasses.asdict(self.run),
        }

    def passes(self, world_size: int) -> int:
        """Compute how many forward and backward passes each process makes per step.

        Raises:
            RecipeError: the batch cannot be divided evenly.
        """
        total, at_once = self.training.batch_size, self.run.device_batch * world_size
        if total % at_once:
            raise RecipeError(
                f"training.batch_size = {total} must be a multiple of run.device_batch = {self.run.device_batch} "
                f"times {world_size} process{'es' if world_size > 1 else ''}"
            )
        return total // at_once


def list_recipes() -> list[str]:
    """List the names of the recipes that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def load_recipe(name: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a file, or a recipe that comes with the package by its name.

    Args:
        overrides: such as ``training.batch_size=64``; a value that is not TOML is taken as a string.

    Raises:
        RecipeError: there is no such recipe, or it cannot be used.
    """
    path = Path(name)
    if not path.is_file() and path.suffix != ".toml" and (SHIPPED / f"{name}.toml").is_file():
        path = SHIPPED / f"{name}.toml"
    if not path.is_file():
        raise RecipeError(f"no recipe file {name}; the recipes that come along are {', '.join(list_recipes())}")
    try:
        tables = _toml().loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise RecipeError(f"{path} is not TOML: {error}") from error
    for override in overrides:
        _override(tables, override)
    return parse_recipe(tables, path.name)


def parse_recipe(tables: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """Build a recipe from its tables; ``source`` is what error messages call it."""
    try:
        refuse_unknown(tables, list(TABLES))
    except ValueError as error:
        raise RecipeError(f"{source}: {error}") from error
    parts: dict[str, Any] = {}
    for name, build in TABLES.items():
        table = tables.get(name, {})
        if not isinstance(table, Mapping):
            raise RecipeError(f"{source}: {name} must be a table, got {shown(table)}")
        try:
            parts[name] = build(table)
        except (ValueError, TypeError, DataError) as error:
            raise RecipeError(f"{source}: {name}: {error}") from error
    return Recipe(**parts)


def _toml() -> Any:
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    return require(name, "train", "reading recipes")


def _override(tables: dict[str, Any], text: str) -> None:
    """Set one value, in place."""
    place, equals, value = text.partition("=")
    keys = place.strip().split(".")
    if not equals or len(keys) != 2:
        raise RecipeError(f"--set: wanted TABLE.KEY=VALUE such as training.batch_size=64, got {text!r}")
    table = tables.setdefault(keys[0], {})
    if not isinstance(table, dict):
        raise RecipeError(f"--set: {keys[0]} is not a table")
    try:
        table[keys[1]] = _toml().loads(f"value = {value.strip()}")["value"]
    except (ValueError, RecursionError):
        table[keys[1]] = value.strip()
