"""Tables of the scale and shift that a modulation gives over timesteps and classes, and TD-LN fitted to them."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.time_gate.eager import mixed
from .ada_blocks import FittedTDLayerNorm
from .ada_sites import BlockSite, Conditioning, modulated
from .fit import Gated, fit_gated

ROWS = 4096  # of conditions at a time


@dataclasses.dataclass(frozen=True)
class Table:
    """A scale or shift: mean, variance and extremes over classes, ``[T, D]`` float64 each."""

    mean: Tensor
    variance: Tensor
    low: Tensor
    high: Tensor


@dataclasses.dataclass(frozen=True)
class NormFit:
    """How well one vector of a fitted norm follows what the modulation gave, over all timesteps, classes and channels.

    Attributes:
        path: the norm's.
        vector: "scale" or "shift".
        unexplained: share of the variance about each channel's mean that the fit leaves; 0 is exact, 1 a constant.
        class_share: share of that variance that lies between classes at one timestep, which no TD-LN can follow.
        rms: root mean square of the difference.
        max_abs: largest difference.
    """

    path: str
    vector: str
    unexplained: float
    class_share: float
    rms: float
    max_abs: float

    def __str__(self) -> str:
        return (
            f"{self.path} {self.vector}: {self.unexplained:.3g} of the variance unexplained "
            f"({self.class_share:.3g} between classes), rms {self.rms:.3g}, max {self.max_abs:.3g}"
        )


@torch.no_grad()
def tables(site: BlockSite, condition: Conditioning, timesteps: Tensor, labels: Tensor) -> list[tuple[Table, Table]]:
    """Scale and shift of the block's two norms, what the norms' own weights do included."""
    linear = site.linear()
    rows_at_once = max(1, ROWS // len(labels))
    parts = []
    for some in timesteps.split(rows_at_once):
        c = condition(some.repeat_interleave(len(labels)), labels.repeat(len(some)))
        six = F.linear(F.silu(c), linear.weight, linear.bias).double()
        shift1, scale1, _, shift2, scale2, _ = six.view(len(some), len(labels), 6, -1).unbind(2)  # [t, classes, D]
        first, second = site.norms()
        parts.append([*_factor_and_summand(first, scale1, shift1), *_factor_and_summand(second, scale2, shift2)])
    first_scale, first_shift, second_scale, second_shift = (_table(column) for column in zip(*parts, strict=True))
    return [(first_scale, first_shift), (second_scale, second_shift)]


def _factor_and_summand(norm: nn.LayerNorm, scale: Tensor, shift: Tensor) -> tuple[Table, Table]:
    factor, summand = modulated(norm, scale, shift)
    return _over_classes(factor), _over_classes(summand)


def _over_classes(values: Tensor) -> Table:
    """``[t, classes, D]``."""
    return Table(values.mean(1), values.var(1, correction=0), values.amin(1), values.amax(1))


def _table(parts: tuple[Table, ...]) -> Table:
    return Table(*(torch.cat(column) for column in zip(*(vars(part).values() for part in parts), strict=True)))


def fitted_norm(
    norm: nn.LayerNorm,
    t: Tensor,
    scale: Table,
    shift: Table,
    gate: str,
    time_range: tuple[float, float],
    dtype: torch.dtype,
) -> FittedTDLayerNorm:
    """TD-LN for the two tables, in float32 at least: a steep gate multiplies what rounding does to its parameters."""
    new = FittedTDLayerNorm(norm.normalized_shape, eps=norm.eps, gate=gate)
    new.time_range = time_range
    new.to(scale.mean.device, torch.promote_types(dtype, torch.float32))
    for table, names in ((scale, ("p1", "p2", "scale_gate")), (shift, ("p3", "p4", "shift_gate"))):
        _store(new, fit_gated(t, table.mean, gate), *names)
    return new.train(norm.training)


@torch.no_grad()
def _store(norm: FittedTDLayerNorm, gated: Gated, first: str, second: str, gate: str) -> None:
    names = (first, second, f"{gate}_weight", f"{gate}_offset")
    for name, value in zip(names, (gated.p, gated.q, gated.weight, gated.offset), strict=True):
        getattr(norm, name).copy_(value)


def vectors(norm: FittedTDLayerNorm, t: Tensor) -> tuple[Tensor, Tensor]:
    """The scale and the shift of its parameters as they are, ``[T, D]`` float64."""
    assert norm.p3 is not None
    assert norm.p4 is not None
    assert norm.shift_gate_weight is not None
    assert norm.shift_gate_offset is not None
    with torch.no_grad():
        scale = mixed(t, norm.p1, norm.p2, norm.scale_gate_weight, norm.scale_gate_offset, torch.float64)
        shift = mixed(t, norm.p3, norm.p4, norm.shift_gate_weight, norm.shift_gate_offset, torch.float64)
    return scale, shift


def measured(path: str, vector: str, table: Table, fitted: Tensor) -> NormFit:
    """``fitted [T, D]`` against the table."""
    total = (table.mean - table.mean.mean(0)).square() + table.variance
    left = (table.mean - fitted).square() + table.variance
    between, variance = table.variance.sum(), total.sum()
    moves = variance > 0

    def share(part: Tensor) -> float:
        return (part / variance).item() if moves else 0.0

    largest = torch.maximum(table.high - fitted, fitted - table.low).max()
    return NormFit(path, vector, share(left.sum()), share(between), left.mean().sqrt().item(), largest.item())
