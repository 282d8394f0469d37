"""Plain norms turned into time-dependent ones that compute the same until they are trained."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from .. import checks
from ..nn import TDLayerNorm, TDRMSNorm
from .rules import check_module, check_not_offloaded, hook_problem, tensor_problem
from .swap import AdoptionReport, Replacement

Norm = nn.LayerNorm | nn.RMSNorm
Select = str | Iterable[str] | Callable[[str, nn.Module], bool]


def adopt_time_norms(model: nn.Module, select: Select | None = None, gate: str = "channel") -> AdoptionReport:
    """Swap ``nn.LayerNorm`` for :class:`~dimr_kernels.TDLayerNorm` and ``nn.RMSNorm`` for ``TDRMSNorm``, in place.

    A new norm starts as the one that it replaces, at every timestep: both ends take its weight and bias. Run the model
    inside ``with dimr_kernels.time_conditioning(t):`` from then on; the batch must be the first dimension of what a
    norm sees, unless ``t`` is one value for the whole batch. The names of these norms' parameters change, so an
    optimizer made before has to be made anew. An RMS norm can only be swapped where its eps is 0: torch's lies inside
    the root, TD-RMS's outside.

    Args:
        model: changed in place.
        select: a regular expression or several, one of which must match a norm's whole name; or a function of name and
            module. None is all norms.
        gate: "channel" has one gate per channel, "scalar" one for all.

    Returns:
        The norms that were swapped or left; ``undo()`` puts the former ones back, with the values they had.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``, or ``select`` nothing that selects.
        ValueError: a selection that names no norm, or an offloaded model.
    """
    check_module("adopt_time_norms", model)
    check_not_offloaded("adopt_time_norms", model)
    checks.check_choice("adopt_time_norms", "gate", gate, ("channel", "scalar"))
    chosen = _selector(select)
    found = [(path, m) for path, m in model.named_modules() if isinstance(m, (nn.LayerNorm, nn.RMSNorm))]
    norms = [(path, norm) for path, norm in found if chosen(path, norm)]
    if select is not None and not norms:
        names = ", ".join(path for path, _ in found[:10]) or "none"
        raise ValueError(f"adopt_time_norms: select={select!r} fits no norm of the model; it has: {names}")
    report = AdoptionReport()
    for path, norm in norms:
        _swap(report, model, path, norm, gate)
    if report.swapped:
        report.add_note("state-dict names of the swapped norms changed: weight, bias -> p1, p2, p3, p4 and their gates")
        report.add_note("run the model inside `with dimr_kernels.time_conditioning(t):`")
    return report


def _selector(select: Select | None) -> Callable[[str, nn.Module], bool]:
    if select is None:
        return lambda path, norm: True
    if callable(select):
        return select
    try:
        patterns = [re.compile(pattern) for pattern in ([select] if isinstance(select, str) else select)]
    except (TypeError, re.error) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"adopt_time_norms: select must be a regular expression, several, or a function; got {select!r} ({error})"
        ) from error
    return lambda path, norm: any(pattern.fullmatch(path) for pattern in patterns)


def _swap(report: AdoptionReport, model: nn.Module, path: str, norm: Norm, gate: str) -> None:
    what = f"{'nn.' if type(norm) in (nn.LayerNorm, nn.RMSNorm) else ''}{type(norm).__name__}"
    problem = _problem(model, norm)
    if problem is not None:
        report.add_left(path, what, problem)
        return
    new = _time_norm_from(norm, gate, _device_near(model, path))
    report.add_swapped(path, what, type(new).__name__, Replacement(model, norm, new))


def _problem(model: nn.Module, norm: Norm) -> str | None:
    """Say why there is no time-dependent norm that computes the same."""
    plain: Any = nn.LayerNorm if isinstance(norm, nn.LayerNorm) else nn.RMSNorm
    shape = norm.normalized_shape
    if norm is model:
        return "is the model itself, nothing holds it"
    if len(shape) != 1:
        return f"normalises over {list(shape)}, more than one dimension"
    if type(norm).forward is not plain.forward and not _computes_as(norm, plain):
        return "has a forward of its own"
    if any(isinstance(parent, nn.TransformerEncoderLayer) and norm in parent.children() for parent in model.modules()):
        return "torch's encoder layer reads its weights, without calling it"
    if plain is nn.RMSNorm and norm.eps != 0:
        return f"eps {norm.eps} is inside the root, TDRMSNorm's outside"
    if is_parametrized(norm):
        return "its weights are parametrized"
    return hook_problem(norm) or tensor_problem(norm)


def _computes_as(norm: Norm, plain: Any) -> bool:
    """Compare a subclass with torch's norm on two inputs: timm's, for one, computes the same."""
    generator = torch.Generator().manual_seed(0)
    try:
        probe = copy.deepcopy(norm).to("cpu", torch.float32).eval()
        for shape in ((2, 3, *norm.normalized_shape), (2, 3, 3, *norm.normalized_shape)):
            x = 2 + 3 * torch.randn(shape, generator=generator)
            if not torch.allclose(probe(x), plain.forward(probe, x), rtol=1e-5, atol=1e-5):
                return False
    except (RuntimeError, TypeError, ValueError):
        return False
    return True


def _device_near(model: nn.Module, path: str) -> torch.device | None:
    """Find the device of a norm, or of the layers around one without weights."""
    while True:
        parameter = next(model.get_submodule(path).parameters(), None)
        if parameter is not None or not path:
            return None if parameter is None else parameter.device
        path = path.rpartition(".")[0]


def _time_norm_from(norm: Norm, gate: str, device: torch.device | None) -> nn.Module:
    new = (
        TDLayerNorm.from_layer_norm(norm, gate)
        if isinstance(norm, nn.LayerNorm)
        else TDRMSNorm.from_rms_norm(norm, gate)
    )
    frozen = any(not parameter.requires_grad for parameter in norm.parameters())
    return new.to(device=device).requires_grad_(not frozen)
