"""adaLN-Zero of a DiT becomes TD-LN, fitted to its table of scale and shift: an approximation, on request only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import checks
from .ada_blocks import FittedTDLayerNorm, TimedModel
from .ada_sites import (
    BlockSite,
    Conditioning,
    DiffusersBlockSite,
    find_sites,
    output_norms,
    owner_of,
    swap,
    why_not_equal,
)
from .ada_tables import NormFit, Table, fitted_norm, measured, tables, vectors
from .report import AdoptionReport
from .sites import check_module
from .swap import ClassChange

TIMESTEPS, LABELS = 100, 16  # looked at unless told otherwise
SHOWN = 8  # fits in a report's text


@dataclasses.dataclass
class AdaNormReport(AdoptionReport):
    """Also how well each norm was fitted, and the model's parameters before and after."""

    fits: list[NormFit] = dataclasses.field(default_factory=list)
    parameters: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        before, after = self.parameters
        lines = [super().__str__(), f"  parameters: {before:,} -> {after:,}"]
        worst = sorted(self.fits, key=lambda fit: -fit.unexplained)[:SHOWN]
        if worst:
            lines.append(f"  the {len(worst)} worst of {len(self.fits)} fits:")
        return "\n".join(lines + [f"  {fit}" for fit in worst])


def adopt_ada_norm(
    model: nn.Module,
    *,
    timesteps: Tensor | Sequence[float] | None = None,
    labels: Tensor | Sequence[int] | None = None,
    time_range: tuple[float, float] = (0.0, 1000.0),
    gate: str = "channel",
    conditioning: Conditioning | None = None,
) -> AdaNormReport:
    """Replace the scale and shift of a DiT's adaLN-Zero by TD-LN's, in place; the gates (alpha) stay as they are.

    TD-LN's scale and shift follow the timestep alone and have one form, ``q + sigmoid(w t + o) (p - q)``. They are
    fitted by least squares to what the modulation gives over timesteps, averaged over classes, so the model computes
    something else afterwards: the report says how far each vector is off, :func:`output_error` what that does to the
    output, and some training usually has to follow. Two thirds of the modulation's parameters go.

    Taken are diffusers' ``BasicTransformerBlock`` with ``ada_norm_zero`` (``DiTTransformer2DModel``) and blocks as in
    the published DiT code, ``block(x, c)`` with ``norm1``, ``attn``, ``norm2``, ``mlp`` and ``adaLN_modulation``, in a
    model called with the timestep second. A copy of each block is tried first, and what computes something else stays.

    Args:
        model: changed in place; its forward keeps its signature.
        timesteps: the model's own, to fit to; None is 100 of them, evenly through ``time_range`` without its end.
        labels: classes to average over; None is 16 of them, evenly from the first to the last (the absent class).
        time_range: the timesteps that TD-LN sees as -1 and 1.
        gate: "channel" has one gate per channel, "scalar" one for all.
        conditioning: timesteps ``[N]`` and labels ``[N]`` -> what the modulation sees, ``[N, width]``; None is the sum
            of ``t_embedder`` and ``y_embedder`` of the model, for diffusers the block's own embedding.

    Returns:
        What was swapped, what not and why, and the fits; ``undo()`` restores.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``.
        ValueError: a bad argument; nothing to embed the timestep with.
    """
    check_module("adopt_ada_norm", model)
    checks.check_choice("adopt_ada_norm", "gate", gate, ("channel", "scalar"))
    low, high = time_range
    if not low < high:
        raise ValueError(f"adopt_ada_norm: time_range must be two rising numbers, got {time_range}")
    before = _count(model)
    report = AdaNormReport()
    fitted = []
    for site, owner in _provable(model, report):
        condition = site.conditioning(owner) if conditioning is None else conditioning
        device = site.linear().weight.device
        classes = _labels(labels, site.label_count(owner) if labels is None else 0, device)
        times = _times(timesteps, time_range, device)
        found = tables(site, condition, times, classes)
        fitted.append((site, owner, _fit(report, site, found, times, gate, (float(low), float(high)))))
    for site, _, norms in fitted:  # now that nothing can fail
        report.add_swapped(site.path, site.what, "TD-LN fitted to scale and shift", *swap(site, norms))
    for owner in dict.fromkeys(owner for site, owner, _ in fitted if not isinstance(site, DiffusersBlockSite)):
        path = next(name for name, module in model.named_modules() if module is owner)
        report.add_note(f"{path or 'the model'} hands its timestep to its blocks", ClassChange(path, owner, TimedModel))
    report.parameters = (before, _count(model))
    return report


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _provable(model: nn.Module, report: AdoptionReport) -> list[tuple[BlockSite, nn.Module]]:
    found = []
    for site in list(find_sites(model)):
        owner = model if isinstance(site, DiffusersBlockSite) else owner_of(model, site.path)
        why = site.why_not() or why_not_equal(site)
        if why is None and owner is None:
            why = "no model around it is called with the timestep (t, timestep or timesteps) second"
        if why is not None:
            report.add_left(site.path, site.what, why)
        elif owner is not None:
            found.append((site, owner))
    for path in output_norms(model):
        report.add_left(path, "nn.LayerNorm, modulated", "the model's own forward computes scale and shift")
    return found


def _times(timesteps: Tensor | Sequence[float] | None, time_range: tuple[float, float], device: torch.device) -> Tensor:
    if timesteps is None:
        low, high = time_range
        return low + (high - low) * torch.arange(TIMESTEPS, device=device) / TIMESTEPS
    return torch.as_tensor(timesteps, device=device).flatten()


def _labels(labels: Tensor | Sequence[int] | None, count: int, device: torch.device) -> Tensor:
    if labels is None:
        return torch.linspace(0, count - 1, min(count, LABELS), device=device).round().long()
    found = torch.as_tensor(labels, device=device).flatten()
    if found.numel() == 0 or found.is_floating_point():
        raise ValueError(f"adopt_ada_norm: labels must be one or more whole numbers, got {labels}")
    return found


def _fit(
    report: AdaNormReport,
    site: BlockSite,
    found: list[tuple[Table, Table]],
    times: Tensor,
    gate: str,
    time_range: tuple[float, float],
) -> list[FittedTDLayerNorm]:
    """Both norms of the block; how well they fit goes into the report."""
    low, high = time_range
    t = (times.double() - low) * (2 / (high - low)) - 1
    norms = []
    for norm, name, (scale, shift) in zip(site.norms(), site.norm_names, found, strict=True):
        new = fitted_norm(norm, t, scale, shift, gate, time_range, site.linear().weight.dtype)
        norms.append(new.requires_grad_(site.linear().weight.requires_grad))
        for vector, table, fitted in zip(("scale", "shift"), (scale, shift), vectors(new, t), strict=True):
            report.fits.append(measured(f"{site.path}.{name}", vector, table, fitted))
    return norms


@dataclasses.dataclass(frozen=True)
class OutputError:
    """``relative``: norm of the difference over the norm of the reference; ``max_abs``: its largest element."""

    relative: float
    max_abs: float


@torch.no_grad()
def output_error(reference: nn.Module, model: nn.Module, *args: Any, **kwargs: Any) -> OutputError:
    """How far two models' outputs are apart on the same arguments: the first tensor of what each returns.

    Make the reference with ``copy.deepcopy`` before a swap. Both run as they are: in training mode dropout differs too.
    """
    wanted, found = (_first_tensor(m(*args, **kwargs)).double() for m in (reference, model))
    error = found - wanted
    return OutputError((error.norm() / wanted.norm()).item(), error.abs().max().item())


def _first_tensor(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = next(iter(output.values())) if isinstance(output, Mapping) else output[0]
    return output
