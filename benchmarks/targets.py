"""Targets of the operators, as data, and their comparison with measurements.

In bfloat16, at the shapes of XL/2R, XL/3R and M/3R at batch 64 (scope "target"), on an H100; one target is for a CPU.
Where a target names no direction, both are held to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .reporting.rows import OPERATORS, Row

TARGET_SCOPE = "target"
BOTH = ("forward", "backward")
MODEL_WIDTHS = (1, 8192)
CASCADE_WIDTH = 38400
DEPTHWISE_RIVALS = ("cudnn", "aten")
IN_THE_MODEL = tuple(operator for operator in OPERATORS if operator != "depthwise_conv3x3")
NORMS = ("td_layer_norm", "td_rms_norm")


@dataclass(frozen=True)
class Target:
    operators: tuple[str, ...]
    directions: tuple[str, ...]
    metric: Literal["fraction_of_copy", "speed_up", "host_us"]
    bound: float
    """To be reached; for host_us, not to be passed."""
    widths: tuple[int, int] = MODEL_WIDTHS
    """Narrowest and widest D or C. The cascade's norm, far wider, has a target of its own."""
    rivals: tuple[str, ...] = ()
    """The faster of these, each a name or its first word, counts for a speed-up; all must have been measured."""
    on_cpu: bool = False
    each_width: bool = False
    """Every width is held to it by itself: where it is missed, another path is to be taken."""
    reason: str = ""
    """Source of the figure."""

    def __str__(self) -> str:
        if self.metric == "fraction_of_copy":
            return f">= {self.bound:.0%} of copy bandwidth"
        if self.metric == "host_us":
            return f"host time <= {self.bound:g} us"
        faster = "the faster of " if len(self.rivals) > 1 else ""
        return f">= {self.bound:g}x {faster}{' and '.join(self.rivals)}"

    @property
    def limits_width(self) -> bool:
        return self.widths[0] > MODEL_WIDTHS[0]

    def reached_by(self, value: float) -> bool:
        return value <= self.bound if self.metric == "host_us" else value >= self.bound


TARGETS = (
    Target(NORMS, ("forward",), "fraction_of_copy", 0.85, (480, 1152), reason="85-92% held realistic"),
    Target(NORMS, ("forward",), "fraction_of_copy", 0.75, (192, 384), reason="short rows reach less"),
    Target(NORMS, ("forward",), "speed_up", 1.0, rivals=("compiled",), reason="Inductor fuses a norm by itself"),
    Target(NORMS, ("forward",), "speed_up", 4.0, rivals=("eager",), reason="eager writes every intermediate"),
    Target(
        tuple(f"{norm}_residual" for norm in NORMS), ("forward",), "fraction_of_copy", 0.85, reason="one kernel"
    ),
    Target(("td_layer_norm",), ("backward",), "fraction_of_copy", 0.70, reason="best published on H100: 42% of peak"),
    Target(("td_layer_norm",), ("backward",), "speed_up", 1.3, rivals=("compiled",), reason="all gradients"),
    Target(
        ("td_layer_norm",), ("forward",), "fraction_of_copy", 0.75, (CASCADE_WIDTH, CASCADE_WIDTH),
        reason="second pass over the row hits L2",
    ),
    Target(("geglu",), BOTH, "fraction_of_copy", 0.90, reason="elementwise"),
    Target(
        ("geglu_linear",), ("forward",), "speed_up", 1.15, rivals=("compiled",), each_width=True,
        reason="cuBLAS, then a compiled elementwise kernel; one kernel is to be chosen only where it wins",
    ),
    Target(
        ("depthwise_conv7x7",), ("forward", "input_gradient"), "fraction_of_copy", 0.55,
        reason="bound by the issue of instructions",
    ),
    Target(
        ("depthwise_conv7x7",), ("forward", "input_gradient"), "speed_up", 2.0, rivals=DEPTHWISE_RIVALS,
        reason="both memory formats",
    ),
    Target(
        ("depthwise_conv7x7",), ("weight_gradient",), "speed_up", 4.0, rivals=DEPTHWISE_RIVALS,
        reason="weight and bias gradient",
    ),
    Target(("pixel_shuffle_add",), BOTH, "fraction_of_copy", 0.90, reason="elementwise"),
    Target(("shuffle_norm_add",), BOTH, "fraction_of_copy", 0.80, reason="shuffle + TD-LN + add in one pass"),
    Target(
        ("pixel_shuffle_add",), BOTH, "speed_up", 1.5, rivals=("eager",), on_cpu=True,
        reason="C++, the model's shapes, 2 cores",
    ),
    Target(IN_THE_MODEL, ("forward",), "host_us", 25.0, widths=(1, CASCADE_WIDTH), reason="eager call"),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """Result of one target for one of its operators in one direction."""

    target: Target
    operator: str
    direction: str
    values: tuple[tuple[float, Row], ...]
    """Measured values, the worst first."""
    missing: int
    """Rows that the target speaks of and that lack ours or a rival."""

    @property
    def verdict(self) -> str:
        if not self.values:
            return "not measured"
        if not self.target.reached_by(self.values[0][0]):
            return "missed"
        return "met" if self.missing == 0 else f"met where measured, {self.missing} not measured"


def evaluate(rows: Sequence[Row], targets: Sequence[Target] = TARGETS) -> Iterator[Outcome]:
    for target in targets:
        for operator in target.operators:
            for direction in target.directions:
                named = [row for row in rows if (row.operator, row.direction) == (operator, direction)]
                covered = [row for row in named if _covers(target, row)]
                for part, spoken_of in _by_width(target, covered) if target.each_width else [(target, covered)]:
                    yield _outcome(part, operator, direction, spoken_of)


def _by_width(target: Target, rows: Sequence[Row]) -> list[tuple[Target, list[Row]]]:
    widths = sorted({row.any_record.width for row in rows})
    parts = [(replace(target, widths=(w, w)), [row for row in rows if row.any_record.width == w]) for w in widths]
    return parts or [(target, [])]


def _outcome(target: Target, operator: str, direction: str, spoken_of: Sequence[Row]) -> Outcome:
    values = [(value, row) for row in spoken_of if (value := value_of(target, row)) is not None]
    values.sort(key=lambda pair: pair[0], reverse=target.metric == "host_us")
    return Outcome(target, operator, direction, tuple(values), missing=len(spoken_of) - len(values))


def _covers(target: Target, row: Row) -> bool:
    record = row.any_record
    return (
        record.scope == TARGET_SCOPE
        and record.on_cpu == target.on_cpu
        and (target.on_cpu or record.dtype == "bfloat16")
        and target.widths[0] <= record.width <= target.widths[1]
    )


def value_of(target: Target, row: Row) -> float | None:
    """``None`` where ours or a rival was not measured."""
    if row.ours is None:
        return None
    if target.metric == "fraction_of_copy":
        return row.ours.fraction_of_copy
    if target.metric == "host_us":
        return row.ours.host_us
    speed_ups = row.speed_ups()
    fastest = []
    for rival in target.rivals:
        found = [value for name, value in speed_ups.items() if name.split()[0] == rival]
        if not found:
            return None
        fastest.append(min(found))
    return min(fastest)
