"""``dimr train``: a run from a recipe to a trained model, with checkpoints, a progress bar and a stop on request."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checkpoints.weights import MUCH, CheckpointError, write_about, write_model
from ..data.errors import DataError
from ..distributed import Processes
from ..images import save_loss_curves
from ..model.counting import count_parameters
from ..model.network import DiMR
from ..sampling.class_names import ranges, save_classes
from ..utils import MissingPackageError, OutOfMemoryError, first_line, is_out_of_memory, require, write_json
from .checkpoint import CheckpointFolder
from .ema import initial_share
from .history import Entry, continued, differences, read_history
from .initial import load_initial_weights
from .loop import DivergedError, Trainer, deterministic_algorithms, scheduled_rate
from .monitoring import SampleGrids, ScalarLog
from .recipe import Recipe, RecipeError, TrainingSettings

if TYPE_CHECKING:
    from ..data.dataset import Dataset
    from ..data.loader import Batch, TrainingLoader

STEPS_PER_READING = 20  # reading the loss waits for the GPU
SIGNALS = (signal.SIGINT, signal.SIGTERM)

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths of the files in a run's output folder."""

    root: Path

    def checkpoints(self, keep: int) -> CheckpointFolder:
        return CheckpointFolder(self.root / "checkpoints", keep)

    @property
    def model(self) -> Path:
        """The averaged weights, in the form that ``dimr sample`` reads."""
        return self.root / "model"

    @property
    def recipe(self) -> Path:
        """The recipe, including the values set on the command line."""
        return self.root / "recipe.json"

    @property
    def history(self) -> Path:
        """The steps from which on recipes were used, see :mod:`dimr.training.history`."""
        return self.root / "history.json"

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
    """A run of ``dimr train`` on this process.

    Raises:
        RecipeError: the recipe's tables do not fit each other, the data or the number of processes, or there is no
            data.
        DataError: the data cannot be used.
    """

    def __init__(
        self, recipe: Recipe, folder: RunFolder, device: torch.device, processes: Processes, afresh: bool = False
    ) -> None:
        from ..data.loader import TrainingLoader  # here, because dimr demo says itself that NumPy is missing
        from ..data.opening import open_dataset

        self.recipe = recipe
        self.folder = folder
        self.processes = processes
        self.checkpoints = folder.checkpoints(recipe.run.keep)
        self.afresh = afresh
        try:
            dataset = open_dataset(recipe.data)
        except FileNotFoundError as error:
            raise RecipeError(f"data.path: {error}") from error
        check_data(dataset, recipe)
        self._class_names = dataset.class_names
        self._trained = [int(label) for label in sorted(set(dataset.labels.tolist()))]
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
        self._init = self._load_initial_weights(model)
        try:
            self.trainer = Trainer(
                model, source, recipe.training, processes=processes, strategy=recipe.run.strategy, passes=passes
            )
        except ValueError as error:
            raise RecipeError(str(error)) from error
        if processes.is_main:
            logger.info(
                "%.1f M parameters; %d images, %d classes; %d process(es) of %d x %d images a step on %s",
                parameters / 1e6, len(dataset), dataset.num_classes, processes.world_size, passes,
                recipe.run.device_batch, device,
            )  # fmt: skip
            untrained = sorted(set(range(recipe.model.num_classes)) - set(self._trained))
            if untrained:
                logger.warning(
                    "the data has %d of the model's %d classes: rows %s of its class embedding stay untrained",
                    len(self._trained), recipe.model.num_classes, ranges(untrained),
                )  # fmt: skip

    def _load_initial_weights(self, model: DiMR) -> dict[str, Any] | None:
        """Load the weights that the recipe names, if the run begins here, and return their record."""
        path = self.recipe.run.init
        if not path:
            return None
        newest = None if self.afresh else self.checkpoints.newest
        record = None
        if newest is None:
            try:
                record, described = load_initial_weights(model, path, self.recipe.run.init_key or None)
            except FileNotFoundError as error:
                raise RecipeError(f"run.init: {error}") from error
        else:
            described = f"run.init = {path} is not read: the run has begun and goes on from {newest}"
        if self.processes.is_main:
            logger.info("%s", described)
        return record

    def train(self, from_step: int | None = None) -> int:
        """Continue from the newest checkpoint, or start if there is none, to the end; see :func:`train`.

        A run that starts ``afresh`` deletes the folder's checkpoints once everything that it needs is there.

        Args:
            from_step: continue from the checkpoint of this step, and delete the later ones likewise.
        """
        settings = self.recipe.run
        history = [] if self.afresh else self._resume(from_step)
        grids = SampleGrids(self.folder.samples, self.trainer, settings)
        scalars = ScalarLog(self.folder.scalars, self.trainer, settings, self._tables())
        self._prepare_folder(history, go_back=self.afresh or from_step is not None)

        def after_step(step: int) -> None:
            scalars.after_step(step)
            grids.after_step(step)

        deterministic = deterministic_algorithms() if settings.deterministic else contextlib.nullcontext()
        with contextlib.closing(scalars), deterministic:
            try:
                signal = train(self.trainer, self.save, settings.save_every, after_step)
            except DivergedError as error:
                before = error.step - 1
                self.processes.run_on_main(lambda: self._set_aside(before), CheckpointError)
                raise DivergedError(f"{error}; {self._describe_good()}", error.step) from error
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise OutOfMemoryError(
                    f"out of memory at step {self.trainer.step + 1}: lower run.device_batch or set "
                    f"training.checkpointing = 'selective'; {self._describe_newest()}"
                ) from error
        if self.processes.is_main:
            self.checkpoints.prune(self.checkpoints.keep)
            share = self.trainer.ema.initial_share
            if share >= MUCH:
                logger.warning(
                    "%.1f%% of the average is still what training began with, for training.ema_decay = %s: "
                    "sample with --weights raw",
                    100 * share, self.recipe.training.ema_decay,
                )  # fmt: skip
        self._draw_losses()
        return signal

    def _describe_newest(self) -> str:
        newest = self.checkpoints.newest
        return "there is no checkpoint yet" if newest is None else f"the last good checkpoint is {newest}"

    def _describe_good(self) -> str:
        """Say from which checkpoints the diverged run can go on."""
        if self.checkpoints.newest is None:
            return f"{self._describe_newest()}: --resume starts again"
        *earlier, _ = self.checkpoints.by_step()
        steps = f", and --step goes back to an earlier one ({', '.join(map(str, earlier))})" if earlier else ""
        return f"{self._describe_newest()}: --resume goes on from it with other settings{steps}"

    def _set_aside(self, step: int) -> None:
        """Set aside the state of ``step``, whose next gradients are not finite with any learning rate."""
        newest = self.checkpoints.newest
        self.checkpoints.set_aside(step)
        if self.checkpoints.newest == newest:
            return
        state = self.checkpoints.load()
        if state is None:
            shutil.rmtree(self.folder.model, ignore_errors=True)
        else:
            self._write_model(state)

    def _resume(self, from_step: int | None) -> list[Entry]:
        """Load a state, and log what has changed since.

        Returns:
            The history of the run up to here.
        """
        state = self.checkpoints.load(from_step)
        if state is None:
            return []
        step = state["step"]
        try:
            self.trainer.load_state_dict(state)
        except (CheckpointError, DataError) as error:
            raise CheckpointError(f"{self.checkpoints.folder}, step {step}: {error}") from error
        entries = read_history(self.folder.history, step)
        before = {**(entries[-1]["recipe"] if entries else self._tables())}
        self._init = before.get("init")  # the first weights of the run stay what they were
        recipe = self._tables()
        recipe["run"] |= {key: before["run"][key] for key in ("init", "init_key") if key in before["run"]}
        before["training"] = TrainingSettings.from_dict(state["settings"]).to_dict()
        if self.processes.is_main:
            logger.info("going on from step %d", step)
            if state["device"] != self.trainer.model.device.type:
                logger.warning("the run was on %s: the noise is another from here on", state["device"])
            for key, (old, new) in differences(before, recipe).items():
                logger.warning("%s = %s from here on (it was %s)", key, new, old)
            rate, was = self.trainer.learning_rate, scheduled_rate(TrainingSettings.from_dict(state["settings"]), step)
            if rate != was:
                logger.warning("the learning rate goes on at %.3g, where %.3g was due", rate, was)
        return continued(entries, step, before, recipe)

    def _prepare_folder(self, history: list[Entry], go_back: bool) -> None:
        """Enter the recipe. To ``go_back``, delete the checkpoints of later steps than the present one."""
        if self.processes.is_main:
            if go_back and (given_up := self.checkpoints.clear(after=self.trainer.step)):
                logger.warning("deleted the checkpoints of steps %s", ", ".join(map(str, given_up)))
            self.checkpoints.remove_partial_files()
            history = history or [{"step": 0, "changed": {}, "recipe": self._tables()}]
            write_json(self.folder.recipe, history[-1]["recipe"])
            write_json(self.folder.history, history)

    def _tables(self) -> dict[str, Any]:
        """Return the recipe as tables, with what the run's first weights are if they are others'."""
        return {**self.recipe.to_dict(), **({} if self._init is None else {"init": self._init})}

    def save(self) -> None:
        """Save a checkpoint and the averaged weights. All ranks must call it."""
        state = self.checkpoints.save(self.trainer)
        self.processes.run_on_main(lambda: self._write_model(state), CheckpointError)

    def _write_model(self, state: Mapping[str, Any]) -> None:
        config, ema = self.trainer.model.config, state["ema"]
        write_model(ema["averages"], config, self.folder.model)
        settings = TrainingSettings.from_dict(state["settings"])
        share = initial_share(ema, settings.ema_decay, settings.ema_ramp)
        write_about(self.folder.model, "ema", state["step"], share)
        save_classes(self._class_names, self._trained, config.num_classes, self.folder.model)

    def _draw_losses(self) -> None:
        trainer = self.trainer
        if trainer.processes.is_main and trainer.step:
            with contextlib.suppress(MissingPackageError):
                sizes = trainer.model.config.prediction_sizes
                save_loss_curves(self.folder.losses, trainer.losses[: trainer.step], sizes)


def new_model(recipe: Recipe, device: torch.device) -> DiMR:
    """Create the model with weights from the recipe's seed, the same on all ranks; torch's own seed stays unused."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        try:
            return DiMR(recipe.model).to(device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise RecipeError(f"model: it does not fit into memory: {first_line(error)}") from error


def check_data(dataset: Dataset, recipe: Recipe) -> None:
    """Raise a RecipeError if the samples' shape or the number of classes is not the model's."""
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


class LoaderSource:
    """Batches for a trainer, with their position in the data. All ranks must save and load it together."""

    def __init__(self, loader: TrainingLoader, device: torch.device, processes: Processes) -> None:
        self.loader = loader
        self.device = device
        self.processes = processes
        self._batches: Iterator[Batch] | None = None

    def __call__(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if self._batches is None:
            self._batches = iter(self.loader)
        return next(self._batches).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        """Return the loader's state, with the skipped files of all ranks."""
        states = self.processes.all_gather(self.loader.state_dict())
        skips = [state["skips"] for state in states]
        files = {name: reason for skip in skips for name, reason in skip["files"].items()}
        return {**states[0], "skips": {"files": files, "count": sum(skip["count"] for skip in skips)}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not self.processes.is_main:  # the ranks' counts are added up
            state = {**state, "skips": {**state["skips"], "count": 0}}
        self.loader.load_state_dict(state)
        self._batches = None


def train(
    trainer: Trainer, save: Callable[[], None], steps_per_save: int, after_step: Callable[[int], None] | None = None
) -> int:
    """Train to the end, or until any process receives SIGINT or SIGTERM, and save.

    Args:
        save: saves the run; called every ``steps_per_save`` steps and at the end.
        after_step: called with the number of steps done.

    Returns:
        The number of the signal, or 0 if the run came to its end.

    Raises:
        DivergedError: see :meth:`Trainer.check_finite`.
    """
    with StopRequest() as stop:
        signal, saved_at = 0, trainer.step
        for step in with_progress(trainer):
            if after_step is not None:
                after_step(step)
            signal = trainer.processes.all_reduce_max(stop.signal)
            if signal:
                break
            if step % steps_per_save == 0:
                save()
                saved_at = step
        if trainer.step > saved_at or trainer.step == trainer.settings.steps:
            save()
    return 0 if trainer.step == trainer.settings.steps else signal


def with_progress(trainer: Trainer, description: str = "training") -> Iterator[int]:
    """Iterate over ``trainer.run()`` with a tqdm bar on rank 0's stderr."""
    tqdm = require("tqdm", "demo", "the progress bar").tqdm
    steps = trainer.settings.steps
    hidden = not trainer.processes.is_main
    with tqdm(
        total=steps, initial=trainer.step, desc=description, unit="step", dynamic_ncols=True, disable=hidden
    ) as bar:
        for step in trainer.run():
            bar.update()
            if not hidden and (step % STEPS_PER_READING == 0 or step == steps):
                bar.set_postfix(loss=f"{trainer.recent_loss():.4f}", refresh=False)
            yield step


class StopRequest:
    """Context manager that records the first SIGINT or SIGTERM in :attr:`signal`; a second SIGINT interrupts.

    Only the main thread can handle signals; in other threads nothing changes.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number
