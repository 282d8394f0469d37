"""A run from a recipe to a trained model."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints.errors import CheckpointError
from ..checkpoints.folder import write_model
from ..class_names import save_class_names
from ..counting import count_parameters
from ..data.dataset import Dataset
from ..data.loader import TrainingLoader
from ..data.opening import open_dataset
from ..files import write_json
from ..memory import OutOfMemoryError, is_out_of_memory
from ..messages import first_line
from ..network import DiMR
from ..optional import MissingPackageError
from ..plots import save_loss_curves
from .checkpoint import on_first_process
from .checkpoint_folder import CheckpointFolder
from .determinism import deterministic_algorithms
from .loop import DivergedError, Trainer
from .processes import Processes
from .progress import train
from .recipe import Recipe
from .samples import SampleGrids
from .scalars import ScalarLog
from .sources import LoaderSource
from .tables import RecipeError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """What lies where in a run's output."""

    root: Path

    def checkpoints(self, keep: int) -> CheckpointFolder:
        return CheckpointFolder(self.root / "checkpoints", keep)

    @property
    def model(self) -> Path:
        """The averaged weights, as ``dimr sample`` reads them."""
        return self.root / "model"

    @property
    def recipe(self) -> Path:
        """The recipe with all that the command line changed."""
        return self.root / "recipe.json"

    @property
    def losses(self) -> Path:
        return self.root / "losses.png"

    @property
    def scalars(self) -> Path:
        return self.root / "tensorboard"

    @property
    def samples(self) -> Path:
        return self.root / "samples"


class TrainingRun:
    """A run in this process, one of ``processes``.

    Raises:
        RecipeError: the recipe's parts do not fit each other, the data or the number of processes; there is no data.
        DataError: the data cannot be used.
    """

    def __init__(self, recipe: Recipe, folder: RunFolder, device: torch.device, processes: Processes) -> None:
        self.recipe = recipe
        self.folder = folder
        self.processes = processes
        self.checkpoints = folder.checkpoints(recipe.run.keep)
        try:
            dataset = open_dataset(recipe.data)
        except FileNotFoundError as error:
            raise RecipeError(f"data.path: {error}") from error
        check_data(dataset, recipe)
        self._class_names = dataset.class_names
        passes = recipe.passes(processes.world_size)
        loader = TrainingLoader(
            dataset,
            recipe.run.device_batch,
            seed=recipe.training.seed,
            rank=processes.rank,
            world_size=processes.world_size,
            num_workers=recipe.run.workers,
            pin_memory=device.type == "cuda",
        )
        source = LoaderSource(loader, device, processes)
        model = new_model(recipe, device)
        parameters = count_parameters(model)
        try:
            self.trainer = Trainer(
                model, source, recipe.training, processes=processes, strategy=recipe.run.strategy, passes=passes
            )
        except ValueError as error:
            raise RecipeError(str(error)) from error
        if processes.first:
            logger.info(
                "%.1f M parameters; %d images, %d classes; %d process(es) of %d x %d images a step on %s",
                parameters / 1e6, len(dataset), dataset.num_classes, processes.world_size, passes,
                recipe.run.device_batch, device,
            )  # fmt: skip

    def train(self, afresh: bool = False) -> int:
        """Go on from the newest checkpoint, if there is one, to the end; see :func:`dimr.training.progress.train`.

        Args:
            afresh: forget the run that the folder holds, once all that this one needs is there.
        """
        settings = self.recipe.run
        if not afresh:
            self._resume()
        grids = SampleGrids(self.folder.samples, self.trainer, settings)
        scalars = ScalarLog(
            self.folder.scalars, self.trainer, settings.log_every, settings.tensorboard, settings.wandb,
            self.recipe.to_dict(),
        )  # fmt: skip
        self._claim(afresh)

        def after_step(step: int) -> None:
            scalars.after_step(step)
            grids.after_step(step)

        deterministic = deterministic_algorithms() if settings.deterministic else contextlib.nullcontext()
        with contextlib.closing(scalars), deterministic:
            try:
                signal = train(self.trainer, self.save, settings.save_every, after_step)
            except DivergedError as error:
                raise DivergedError(f"{error}; {self._kept()}") from error
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise OutOfMemoryError(
                    f"out of memory at step {self.trainer.step + 1}: lower run.device_batch or set "
                    f"training.checkpointing = 'selective'; {self._kept()}"
                ) from error
        self._draw_losses()
        return signal

    def _kept(self) -> str:
        newest = self.checkpoints.newest
        return "there is no checkpoint yet" if newest is None else f"the last good checkpoint is {newest}"

    def _resume(self) -> None:
        state = self.checkpoints.load()
        if state is None:
            return
        try:
            self.trainer.load_state_dict(state)
        except CheckpointError as error:
            raise CheckpointError(f"{self.checkpoints.folder}, step {state['step']}: {error}") from error
        if self.processes.first:
            logger.info("going on from step %d", self.trainer.step)

    def _claim(self, afresh: bool) -> None:
        if self.processes.first:
            if afresh:
                self.checkpoints.clear()
            self.checkpoints.remove_leftovers()
            write_json(self.folder.recipe, self.recipe.to_dict())

    def save(self) -> None:
        """A checkpoint and the averaged weights. All processes must call it."""
        state = self.checkpoints.save(self.trainer)
        on_first_process(self.processes, lambda: self._write_model(state["ema"]["averages"]))

    def _write_model(self, averages: Mapping[str, Tensor]) -> None:
        config = self.trainer.model.config
        write_model(averages, config, self.folder.model)
        if self._class_names is not None and len(self._class_names) == config.num_classes:
            save_class_names(self._class_names, self.folder.model)

    def _draw_losses(self) -> None:
        trainer = self.trainer
        if trainer.processes.first and trainer.step:
            with contextlib.suppress(MissingPackageError):
                sizes = trainer.model.config.prediction_sizes
                save_loss_curves(self.folder.losses, trainer.losses[: trainer.step], sizes)


def new_model(recipe: Recipe, device: torch.device) -> DiMR:
    """The seed decides the weights, the same in all processes, and leaves torch's global generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        try:
            return DiMR(recipe.model).to(device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise RecipeError(f"model: it does not fit into memory: {first_line(error)}") from error


def check_data(dataset: Dataset, recipe: Recipe) -> None:
    config = recipe.model
    wanted = (config.in_channels, config.input_size, config.input_size)
    if tuple(dataset.sample_shape) != wanted:
        found, needed = ("x".join(map(str, shape)) for shape in (dataset.sample_shape, wanted))
        raise RecipeError(f"data: {recipe.data.path} has samples of {found}, the model takes {needed}")
    if dataset.num_classes > config.num_classes:
        raise RecipeError(
            f"data: {recipe.data.path} has {dataset.num_classes} classes, the model {config.num_classes}; "
            f"set model.num_classes"
        )
