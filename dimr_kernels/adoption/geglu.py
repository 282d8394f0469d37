"""GEGLU feed-forwards of diffusers and timm, computed by this package's GeGLU."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from ..ops.geglu_linear.module import project_and_gate
from ..plain import is_plain_linear, is_watched
from .sites import Rule, Site, loaded_class, loaded_classes, why_not_exactly, why_watched
from .swap import Adopted, Change, ClassChange
from .trial import why_not_equal

DIFFUSERS = "diffusers.models.activations.GEGLU"
TIMM = "timm.layers.mlp.GluMlp"


class GatedProjection(Adopted):
    """The forward of diffusers' GEGLU: the projection's last half is the gate, and GELU the exact one."""

    proj: nn.Module

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs:  # about which the class of its own has something to say
            return super().forward(hidden_states, *args, **kwargs)
        return project_and_gate(self.proj, hidden_states, "none", "last")


class GatedMLP(Adopted):
    """The forward of timm's GluMlp as long as its activation is a GELU that nobody waits for."""

    def forward(self, x: Tensor) -> Tensor:
        layer: Any = self
        approximate = _approximation(layer.act)
        if approximate is None or layer.chunk_dim != -1 or is_watched(layer.act):
            return super().forward(x)
        x = project_and_gate(layer.fc1, x, approximate, _gate(layer))
        return layer.drop2(layer.fc2(layer.norm(layer.drop1(x))))


def _approximation(activation: nn.Module) -> str | None:
    """Which GELU it is; None for anything else."""
    if type(activation) is nn.GELU:
        return activation.approximate
    for name, approximate in (("GELU", "none"), ("GELUTanh", "tanh")):
        if type(activation) is loaded_class(f"timm.layers.activations.{name}"):
            return approximate
    return None


def _gate(layer: Any) -> str:
    return "last" if layer.gate_last else "first"


def _is_a(layer: nn.Module, name: str) -> bool:
    return isinstance(layer, loaded_classes(name))


def _what(site: Site) -> str | None:
    if _is_a(site.module, DIFFUSERS):
        return "diffusers GEGLU"
    return "timm GluMlp" if _is_a(site.module, TIMM) else None


def _why_not(site: Site) -> str | None:
    layer = site.module
    return _why_not_diffusers(layer) if _is_a(layer, DIFFUSERS) else _why_not_timm(layer)


def _why_not_diffusers(layer: nn.Module) -> str | None:
    cls = loaded_class(DIFFUSERS)
    return why_not_exactly(layer, cls) or why_not_equal(cls, GatedProjection, lambda: cls(4, 6))


def _why_not_timm(layer: Any) -> str | None:
    cls = loaded_class(TIMM)
    problem = why_not_exactly(layer, cls)
    if problem is not None:
        return problem
    if layer.chunk_dim != -1:
        return "it gates the channels of [B, C, H, W] (use_conv=True); the operator gates the last dimension"
    if _approximation(layer.act) is None:
        return f"its activation is {type(layer.act).__name__}, not GELU"
    watched = why_watched(layer.act)
    if watched is not None:
        return f"its activation would not be called: {watched}"
    return why_not_equal(cls, GatedMLP, lambda: _small_glu_mlp(cls, layer))


def _small_glu_mlp(cls: Any, layer: Any) -> nn.Module:
    activation = copy.deepcopy(layer.act)
    return cls(4, 6, act_layer=lambda: activation, norm_layer=nn.LayerNorm, gate_last=layer.gate_last)


def _swap(site: Site) -> tuple[str, Change]:
    layer: Any = site.module
    if _is_a(layer, DIFFUSERS):
        return _by(layer.proj), ClassChange(site.path, layer, GatedProjection)
    return _by(layer.fc1), ClassChange(site.path, layer, GatedMLP)


def _by(proj: nn.Module) -> str:
    return "geglu_linear" if is_plain_linear(proj) else f"geglu after its {type(proj).__name__}"


RULE = Rule(_what, _why_not, _swap)
