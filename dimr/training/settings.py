"""What decides a run beside the model's configuration and the data."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from ..recomputation import check_mode

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
        check_mode(self.checkpointing)
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
