"""The layers that ``adopt`` swaps, the operators that compute them afterwards, and the checks before that."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ..checks import autocast_dtype, hook_names, is_call_modified, is_plain_linear, is_plain_tensor
from ..dispatch import current_backend
from ..functional import depthwise_conv2d, td_layer_norm
from ..ops.geglu import project_and_gate
from ..ops.linear import linear, onednn_is_faster
from .swap import Adopted, AdoptionReport, ClassChange, Hook, library_problem

DIFFUSERS_GEGLU = "diffusers.models.activations.GEGLU"
TIMM_GLU = "timm.layers.mlp.GluMlp"
TIMM_GELU, TIMM_GELU_TANH = "timm.layers.activations.GELU", "timm.layers.activations.GELUTanh"
TIMM_LAYER_NORM = "timm.layers.norm.LayerNorm"  # torch's with another default
CONVNEXT_BLOCKS = ("timm.models.convnext.ConvNeXtBlock", "torchvision.models.convnext.CNBlock")
CONVNEXTS = ("timm.models.convnext.ConvNeXt", "torchvision.models.convnext.ConvNeXt")
KERNEL_SIZES = (3, 5, 7)  # of the depthwise operator


@dataclass(frozen=True)
class Site:
    """A layer, its first name in ``named_modules()``, and the modules around it, from the model down to its parent."""

    path: str
    module: nn.Module
    above: tuple[nn.Module, ...]


@dataclass(frozen=True)
class Match:
    """A layer of a kind that can be swapped.

    Attributes:
        what: the layer's kind.
        by: the operator that would compute it; "" where that is not known.
        forward: the forward that would be put before its own.
        problem: the reason to leave it; None where the swap changes nothing that it computes.
    """

    what: str
    by: str
    forward: type[Adopted]
    problem: str | None


def adopt(
    model: nn.Module,
    *,
    channels_last: bool | None = None,
    layer_norm: bool = False,
    linear_layers: bool | None = None,
) -> AdoptionReport:
    """Let this package's operators compute those layers of a model that were tested equal, in place.

    A swapped layer keeps its module, parameters, names and hooks; only its class becomes a subclass of its own with
    another forward. So optimizers, checkpoints, ``isinstance``, copies and pickles go on working. No library is
    imported, nothing is slower on purpose: what cannot gain is left alone, and the report gives the reason.

    - diffusers' ``GEGLU`` and timm's ``GluMlp`` with a GELU become :func:`dimr_kernels.functional.geglu_linear`.
    - Depthwise ``nn.Conv2d`` of 3x3, 5x5 or 7x7, stride 1, same padding, in timm's and torchvision's ConvNeXt become
      :func:`dimr_kernels.functional.depthwise_conv2d`. The network gets one hook, which makes the images that come in
      channels last; from there on every layer keeps that layout and nothing is copied between them. A feature map in
      another layout goes to torch's convolution as before.
    - ``nn.Linear`` of float32 on a CPU in timm's and torchvision's ConvNeXt becomes
      :func:`dimr_kernels.functional.linear` where that has the faster products (AVX-512, not Intel's).
    - ``nn.LayerNorm`` stays: torch's own is one fused kernel.

    What changes a model's parameters is asked for by name: :func:`dimr_kernels.adoption.adopt_time_norms`,
    :func:`dimr_kernels.adoption.adopt_ada_norm`.

    Args:
        model: changed in place. Adopting it again changes nothing.
        channels_last: True swaps depthwise convolutions in any network, and runs the whole model in channels last;
            its forward must not ``view`` feature maps as if they were contiguous (torch raises an error where it
            does). False leaves all of them alone. None does what is known to be right, as above.
        layer_norm: swap ``nn.LayerNorm``, and timm's, over one dimension as well, for TD-LN that is constant in time.
        linear_layers: True swaps ``nn.Linear`` in any network, and on any machine, for
            :func:`dimr_kernels.functional.linear`. False leaves all of them alone. None does what is known to be
            faster, as above.

    Returns:
        The layers that were swapped, and those that were left with the reason; ``print`` it. Its ``undo()`` restores
        the model.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``.

    A second backward through the fused GeGLU and convolution is an error that says what to do, and ``torch.jit.script``
    does not know them.

    Example:
        >>> import timm, dimr_kernels as dk
        >>> model = timm.create_model("convnext_atto")
        >>> report = dk.adopt(model)
        >>> len(report.swapped)
        12
        >>> report.undo()
    """
    check_module("adopt", model)
    report = AdoptionReport()
    convolutions: list[Site] = []
    for site in list(_sites_of(model)):
        match = (
            _match_diffusers_geglu(site.module)
            or _match_timm_glu(site.module)
            or _match_depthwise(site, channels_last)
            or _match_layer_norm(site.module, layer_norm)
            or _match_linear(site, linear_layers)
        )
        if match is None:
            continue
        if match.problem is not None:
            report.add_left(site.path, match.what, match.problem)
            continue
        report.add_swapped(site.path, match.what, match.by, ClassChange(site.path, site.module, match.forward))
        if match.forward is DepthwiseConvolution:
            convolutions.append(site)
    _run_in_channels_last(model, convolutions, channels_last, report)
    return report


def _sites_of(model: nn.Module) -> Iterator[Site]:
    """Yield one for each module, however often it occurs."""
    for path, module in model.named_modules():
        parts = path.split(".") if path else []
        above = tuple(model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts)))
        yield Site(path, module, above)


# What every swap asks of a layer first.


def check_module(function: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: model must be an nn.Module, got {type(model).__name__}")


def check_not_offloaded(function: str, model: nn.Module) -> None:
    """Check that no hooks of accelerate or diffusers bring in the model's weights: they would not know new ones."""
    for path, module in model.named_modules():
        groups = getattr(module, "_diffusers_hook", None)
        if hasattr(module, "_hf_hook") or (groups is not None and groups.get_hook("group_offloading") is not None):
            raise ValueError(
                f"{function}: the model is offloaded (hooks bring in the weights of {path or 'the model itself'}), and "
                f"new parameters would be left out: adopt first, then offload"
            )


def class_problem(module: nn.Module, cls: type[nn.Module]) -> str | None:
    """Say why a call of the module may be something else than ``cls.forward``."""
    if isinstance(module, Adopted):
        return "already adopted"
    if is_parametrized(module):
        names = ", ".join(module.parametrizations)  # type: ignore[arg-type]
        return f"its {names} is parametrized"
    if type(module) is not cls:
        found = type(module)
        return f"it is a {found.__module__}.{found.__name__}, which may compute something else than {cls.__name__}"
    return hook_problem(module)


def hook_problem(module: nn.Module) -> str | None:
    """Say what besides the class's forward a call of the module runs."""
    hooks = hook_names(module)
    if hooks:
        return f"it has hooks: {', '.join(hooks)}"
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    return None


def tensor_problem(module: nn.Module) -> str | None:
    """Name a quantised or sharded weight: a subclass, which the layer's own operator knows and ours may not."""
    for name, tensor in module.named_parameters():
        if not is_plain_tensor(tensor):
            return f"its {name} is a {type(tensor).__name__}"
    return None


def _loaded_class(name: str) -> Any:
    """Find the class of that dotted name; None as long as its library was not imported."""
    module, _, attribute = name.rpartition(".")
    return getattr(sys.modules.get(module), attribute, None)


def _is_a(module: nn.Module, *names: str) -> bool:
    return isinstance(module, tuple(cls for cls in map(_loaded_class, names) if isinstance(cls, type)))


# Gated feed-forwards of diffusers and timm.


class GatedProjection(Adopted):
    """The forward of diffusers' GEGLU: the projection's last half is the gate, and GELU the exact one."""

    proj: nn.Module

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs:  # the layer's own forward warns about these
            return super().forward(hidden_states, *args, **kwargs)
        return project_and_gate(self.proj, hidden_states, "none", "last")


class GatedMLP(Adopted):
    """The forward of timm's GluMlp as long as its activation is a GELU without hooks."""

    def forward(self, x: Tensor) -> Tensor:
        layer: Any = self
        approximate = _gelu_approximation(layer.act)
        if approximate is None or layer.chunk_dim != -1 or is_call_modified(layer.act):
            return super().forward(x)
        x = project_and_gate(layer.fc1, x, approximate, "last" if layer.gate_last else "first")
        return layer.drop2(layer.fc2(layer.norm(layer.drop1(x))))


def _gelu_approximation(activation: nn.Module) -> str | None:
    """Return the GELU's ``approximate``; None for any other activation."""
    if type(activation) is nn.GELU:
        return activation.approximate
    for name, approximate in ((TIMM_GELU, "none"), (TIMM_GELU_TANH, "tanh")):
        if type(activation) is _loaded_class(name):
            return approximate
    return None


def _geglu_name(projection: nn.Module) -> str:
    return "geglu_linear" if is_plain_linear(projection) else f"geglu after its {type(projection).__name__}"


def _match_diffusers_geglu(layer: Any) -> Match | None:
    if not _is_a(layer, DIFFUSERS_GEGLU):
        return None
    cls = _loaded_class(DIFFUSERS_GEGLU)
    problem = class_problem(layer, cls) or library_problem(cls, GatedProjection, lambda: cls(4, 6))
    by = _geglu_name(layer.proj) if problem is None else ""
    return Match("diffusers GEGLU", by, GatedProjection, problem)


def _match_timm_glu(layer: Any) -> Match | None:
    if not _is_a(layer, TIMM_GLU):
        return None
    problem = _timm_glu_problem(layer)
    by = _geglu_name(layer.fc1) if problem is None else ""
    return Match("timm GluMlp", by, GatedMLP, problem)


def _timm_glu_problem(layer: Any) -> str | None:
    cls = _loaded_class(TIMM_GLU)
    problem = class_problem(layer, cls)
    if problem is not None:
        return problem
    if layer.chunk_dim != -1:
        return "it gates the channels of [B, C, H, W] (use_conv=True); the operator gates the last dimension"
    if _gelu_approximation(layer.act) is None:
        return f"its activation is {type(layer.act).__name__}, not GELU"
    problem = hook_problem(layer.act)
    if problem is not None:
        return f"its activation would not be called: {problem}"
    activation = copy.deepcopy(layer.act)
    options = {"act_layer": lambda: activation, "norm_layer": nn.LayerNorm, "gate_last": layer.gate_last}
    return library_problem(cls, GatedMLP, lambda: cls(4, 6, **options))


# Layer norms.


class LayerNorm(Adopted):
    """TD-LN whose two ends are one and the same: ``s w + (1 - s) w`` is w, whatever the gate.

    Torch's own runs for single rows, under autocast and for mixed dtypes, where its result has another dtype than ours,
    and in code that is compiled, where Inductor fuses it with its neighbours.
    """

    normalized_shape: tuple[int, ...]
    eps: float
    weight: Tensor | None
    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        mixed = weight is not None and weight.dtype != input.dtype
        if mixed or input.dim() < 2 or autocast_dtype(input) is not None or torch.compiler.is_compiling():
            return super().forward(input)
        one, zero = _one_and_zero(self.normalized_shape[0], input.device)
        if weight is None:
            weight = one
        shift_gate = None if bias is None else zero
        return td_layer_norm(  # type: ignore[return-value]  # without a residual it is one tensor
            input, zero, weight, weight, bias, bias, zero, zero, shift_gate, shift_gate, self.eps
        )


@lru_cache
def _one_and_zero(D: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Make a weight of ones ``[D]``, and the zero ``[1]`` that is timestep and gate."""
    with torch.inference_mode(False):
        return torch.ones(D, device=device), torch.zeros(1, device=device)


def _match_layer_norm(norm: nn.Module, wanted: bool) -> Match | None:
    if not isinstance(norm, nn.LayerNorm):
        return None
    return Match("nn.LayerNorm", "td_layer_norm, constant in time", LayerNorm, _layer_norm_problem(norm, wanted))


def _layer_norm_problem(norm: Any, wanted: bool) -> str | None:
    cls = _loaded_class(TIMM_LAYER_NORM)
    if type(norm) is not cls:
        problem = class_problem(norm, nn.LayerNorm)
    elif getattr(norm, "_fast_norm", False):
        problem = "timm's fast norm is set for it, which computes in lower precision"
    else:
        problem = class_problem(norm, cls) or library_problem(cls, LayerNorm, lambda: _random_norm(cls))
    problem = problem or tensor_problem(norm)
    if problem is not None:
        return problem
    if len(norm.normalized_shape) != 1:
        return f"it normalizes {len(norm.normalized_shape)} dimensions, {tuple(norm.normalized_shape)}, at once"
    return None if wanted else "torch's own is one fused kernel already; layer_norm=True takes ours"


def _random_norm(cls: type[nn.Module]) -> nn.Module:
    norm = cls(4)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


# Linear layers.


class Linear(Adopted):
    """A linear layer on the faster of torch's two libraries of products."""

    weight: Tensor
    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def _match_linear(site: Site, wanted: bool | None) -> Match | None:
    """Match a linear layer; None also where the operator around it computes it, and where none was asked for."""
    layer = site.module
    if not isinstance(layer, nn.Linear) or wanted is False or _is_gated_projection(site):
        return None
    if wanted is None:
        in_convnext = any(_is_a(module, *CONVNEXT_BLOCKS) for module in site.above)
        fast = onednn_is_faster() and layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32
        if not (in_convnext and fast):
            return None
    return Match("nn.Linear", "linear", Linear, class_problem(layer, nn.Linear) or tensor_problem(layer))


def _is_gated_projection(site: Site) -> bool:
    parent: Any = site.above[-1] if site.above else None
    if isinstance(parent, GatedProjection):
        return site.module is parent.proj
    return isinstance(parent, GatedMLP) and site.module is parent.fc1  # type: ignore[attr-defined]


# Depthwise convolutions, with the layout handled once around the network.


class DepthwiseConvolution(Adopted):
    """``[B, C, H, W]`` -> ``[B, C, H, W]``, channels last in memory: the operator's [B, H, W, C] is a view of it.

    Feature maps that come in another layout go to torch's own convolution, for the operator would copy them.
    """

    weight: Tensor
    bias: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        if input.dim() != 4 or (input.stride(1) != 1 and current_backend() in ("auto", "eager")):
            return super().forward(input)
        return depthwise_conv2d(input.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


def _match_depthwise(site: Site, channels_last: bool | None) -> Match | None:
    conv = site.module
    if not isinstance(conv, nn.Conv2d) or not 1 < conv.groups == conv.in_channels:
        return None
    problem = class_problem(conv, nn.Conv2d) or tensor_problem(conv) or _operator_problem(conv)
    if problem is None and channels_last is False:
        problem = "channels_last=False leaves depthwise convolutions alone"
    if problem is None and not channels_last and not any(_is_a(module, *CONVNEXT_BLOCKS) for module in site.above):
        problem = "not in a known ConvNeXt: channels_last=True swaps it, and runs the model in channels last"
    what = f"nn.Conv2d {'x'.join(map(str, conv.kernel_size))} depthwise"
    return Match(what, "depthwise_conv2d, channels last", DepthwiseConvolution, problem)


def _operator_problem(conv: nn.Conv2d) -> str | None:
    """Say what about the convolution the operator does not have."""
    K = conv.kernel_size[0]
    if conv.kernel_size not in [(k, k) for k in KERNEL_SIZES]:
        return "its kernel is not 3x3, 5x5 or 7x7"
    if conv.stride != (1, 1):
        return f"its stride is {conv.stride}, not 1"
    if conv.dilation != (1, 1):
        return f"its dilation is {conv.dilation}, not 1"
    if conv.out_channels != conv.in_channels:
        return f"it makes {conv.out_channels} channels out of {conv.in_channels}"
    if conv.padding != "same" and conv.padding != (K // 2, K // 2):
        return f"its padding is {conv.padding}, which changes the size"
    if conv.padding_mode != "zeros":
        return f"its padding mode is {conv.padding_mode!r}, not 'zeros'"
    return None


def _run_in_channels_last(
    model: nn.Module, swapped: Sequence[Site], channels_last: bool | None, report: AdoptionReport
) -> None:
    """Put a hook on each network with swapped convolutions: on the model itself where the caller wants all of it so."""
    names = {module: name for name, module in model.named_modules()}
    roots = [model] if channels_last else _networks_around(swapped)
    for root in roots if swapped else ():
        if inputs_to_channels_last not in root._forward_pre_hooks.values():
            handle = root.register_forward_pre_hook(inputs_to_channels_last, with_kwargs=True)
            where = names[root] or "the model"
            report.add_note(f"{where} runs in channels last: a hook converts its inputs", Hook(handle))


def _networks_around(swapped: Sequence[Site]) -> list[nn.Module]:
    """Find the known networks around layers; for blocks that stand in none, the innermost module around all of them."""
    networks: dict[nn.Module, None] = {}
    others = []
    for site in swapped:
        known = [module for module in site.above if _is_a(module, *CONVNEXTS)]
        if known:
            networks[known[0]] = None
        else:
            others.append(site.above)
    if others:
        around = [group[0] for group in zip(*others, strict=False) if all(module is group[0] for module in group)]
        networks[next(module for module in reversed(around) if _is_called(module))] = None
    return list(networks)


def _is_called(module: nn.Module) -> bool:
    """A list of modules is not."""
    return type(module).forward is not nn.Module.forward


def inputs_to_channels_last(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:  # fmt: skip
    """Make images ``[B, C, H, W]`` among a module's inputs channels last in memory; a forward pre-hook."""
    return tuple(map(_to_channels_last, args)), {name: _to_channels_last(value) for name, value in kwargs.items()}


def _to_channels_last(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dim() == 4 and value.is_floating_point():
        return value.contiguous(memory_format=torch.channels_last)
    return value
