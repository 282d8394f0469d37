"""A progress bar over a run, with its loss and the time left."""

from __future__ import annotations

from collections.abc import Iterator

from ..optional import require
from .loop import Trainer

# Reading the loss waits for a GPU, so it is not read at every step.
STEPS_PER_READING = 20


def with_progress(trainer: Trainer, description: str = "training") -> Iterator[int]:
    """``trainer.run()`` under a tqdm bar on stderr."""
    tqdm = require("tqdm", "demo", "the progress bar").tqdm
    steps = trainer.settings.steps
    with tqdm(total=steps, initial=trainer.step, desc=description, unit="step", dynamic_ncols=True) as bar:
        for step in trainer.run():
            bar.update()
            if step % STEPS_PER_READING == 0 or step == steps:
                bar.set_postfix(loss=f"{trainer.recent_loss():.4f}", refresh=False)
            yield step
