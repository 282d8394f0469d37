"""A run with a progress bar, saved now and then, and stopped on request."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..optional import require
from .interrupt import StopRequest
from .loop import Trainer

# Reading the loss waits for a GPU, so it is not read at every step.
STEPS_PER_READING = 20


def with_progress(trainer: Trainer, description: str = "training") -> Iterator[int]:
    """``trainer.run()`` under a tqdm bar on the first process's stderr."""
    tqdm = require("tqdm", "demo", "the progress bar").tqdm
    steps = trainer.settings.steps
    hidden = not trainer.processes.first
    with tqdm(
        total=steps, initial=trainer.step, desc=description, unit="step", dynamic_ncols=True, disable=hidden
    ) as bar:
        for step in trainer.run():
            bar.update()
            if not hidden and (step % STEPS_PER_READING == 0 or step == steps):
                bar.set_postfix(loss=f"{trainer.recent_loss():.4f}", refresh=False)
            yield step


def train(
    trainer: Trainer, save: Callable[[], None], steps_per_save: int, after_step: Callable[[int], None] | None = None
) -> int:
    """Train to the end, or until any process is sent SIGINT or SIGTERM, and save.

    Args:
        save: keeps the run; called every ``steps_per_save`` steps and at the end.
        after_step: called with the number of steps done.

    Returns:
        The signal's number; 0 if the run came to its end.

    Raises:
        DivergedError: see :meth:`Trainer.check_finite`.
    """
    with StopRequest() as stop:
        signal, saved_at = 0, trainer.step
        for step in with_progress(trainer):
            if after_step is not None:
                after_step(step)
            signal = trainer.processes.largest(stop.signal)
            if signal:
                break
            if step % steps_per_save == 0:
                save()
                saved_at = step
        if trainer.step > saved_at or trainer.step == trainer.settings.steps:
            save()
    return 0 if trainer.step == trainer.settings.steps else signal
