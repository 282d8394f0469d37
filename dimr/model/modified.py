"""Layers whose call does more than their class and their weights say, and plain layers that compute the same.

What reads weights without calling the layers (the inference engine, a checkpoint) compares the model with a new one of
its configuration first. Other libraries change a layer in many ways: a wrapper or a subclass with another forward, a
forward set on the instance, hooks, parametrizations, weights of their own class, options such as a convolution's
padding mode. Adapters and parametrizations can be merged into a plain layer; of others only the name can be told.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dimr_kernels import SelfAttention
from dimr_kernels.checks import is_plain_tensor

from .network import DiMR, without_weights


@dataclass
class PlainView:
    """A model seen as plain layers.

    Attributes:
        model: shares every layer with the original, but for those that were merged.
        merged: layers that were replaced by plain ones, and what they were, by their paths.
        modified: layers that could not be, each with what it does besides.
    """

    model: DiMR
    merged: dict[str, str] = field(default_factory=dict)
    modified: dict[str, str] = field(default_factory=dict)

    def modifications(self, path: str) -> dict[str, str]:
        """Return the modified layers at ``path`` and below."""
        return {name: what for name, what in self.modified.items() if f"{name}.".startswith(f"{path}.")}


def plain_view(model: DiMR) -> PlainView:
    """View ``model``, which is not changed, as plain layers."""
    view = PlainView(model)
    view.model = _view(model, without_weights(model.config), "", view)
    return view


def _view(found: Any, wanted: nn.Module, path: str, view: PlainView) -> Any:
    if isinstance(wanted, SelfAttention) and isinstance(found, SelfAttention) and found.is_packed:
        wanted.pack_head_dim(found.out.weight.shape[1] // found.num_heads)
    what = modification(found, wanted)
    if what is not None:
        plain = merged(found, wanted)
        if plain is not None:
            view.merged[path] = what
            return plain
        view.modified[path] = what
        if not isinstance(found, type(wanted)):
            return found
    children: dict[str, nn.Module | None] = {
        name: _view(found._modules[name], child, f"{path}.{name}".lstrip("."), view)
        for name, child in wanted._modules.items()
        if child is not None and name in found._modules
    }
    if all(child is found._modules[name] for name, child in children.items()):
        return found
    seen = copy.copy(found)
    seen._modules = {**found._modules, **children}
    return seen


def modification(found: nn.Module | None, wanted: nn.Module) -> str | None:
    """Describe what a call of ``found`` does besides the forward of ``wanted``; None if nothing. Children are left out.

    Hooks of the backward count for nothing: they change no output.
    """
    if found is None:
        return "is None"
    if type(found) is not type(wanted):
        return _described_class(found)
    hooks = [*found._forward_pre_hooks.values(), *found._forward_hooks.values()]
    if hooks:
        return f"has forward hooks ({', '.join(getattr(hook, '__name__', type(hook).__name__) for hook in hooks)})"
    if "forward" in vars(found):
        return "has a forward of its own, set on the instance"
    for name, tensor in found.named_parameters(recurse=False):
        if not is_plain_tensor(tensor):
            return f"has a {name} of class {type(tensor).__name__}"
    for kind, have, want in (
        ("parameters", found._parameters, wanted._parameters),
        ("layers", found._modules, wanted._modules),
    ):
        have_names, want_names = ({name for name, value in side.items() if value is not None} for side in (have, want))
        if have_names != want_names:
            return f"has other {kind} ({', '.join(sorted(have_names ^ want_names))})"
    if found.extra_repr() != wanted.extra_repr():
        return f"has other settings ({found.extra_repr()}; wanted {wanted.extra_repr()})"
    return None


def _described_class(module: nn.Module) -> str:
    if parametrize.is_parametrized(module):
        kinds = (
            f"{name} ({', '.join(type(step).__name__ for step in steps)})"  # type: ignore[union-attr]
            for name, steps in module.parametrizations.items()  # type: ignore[union-attr,operator]
        )
        return f"has a parametrized {', '.join(kinds)}"
    return f"is a {type(module).__module__}.{type(module).__qualname__}"


# Merging


def merged(module: nn.Module | None, wanted: nn.Module) -> nn.Module | None:
    """Return a plain layer like ``wanted`` that computes the same as ``module`` in evaluation mode, or None.

    Two protocols are known: torch's parametrizations, and the one of peft's adapters, ``merge`` and
    ``get_base_layer``. A merged layer whose output differs, as that of an adapter that is switched off, is not taken.
    """
    merge = _merging(module)
    if module is None or merge is None:
        return None
    try:
        plain = merge(copy.deepcopy(module).eval())
    except Exception:  # a foreign layer may refuse to be copied or merged in any way; it stays modified
        return None
    if modification(plain, wanted) is not None:
        plain = merged(plain, wanted)
    return plain if plain is not None and _compute_the_same(module, plain, wanted) else None


def _merging(module: Any) -> Callable[[Any], Any] | None:
    if module is None or module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        return None
    if parametrize.is_parametrized(module):
        return _without_parametrizations
    if callable(getattr(module, "merge", None)) and callable(getattr(module, "get_base_layer", None)):
        return _without_adapters
    return None


def _without_parametrizations(module: Any) -> nn.Module:
    """Make a layer of the class before, with the values as parameters.

    ``parametrize.remove_parametrizations`` on a copy would take the property away from the original, which shares its
    class.
    """
    kind: Any = parametrize.type_before_parametrizations(module)
    plain = kind.__new__(kind)
    plain.__dict__.update(vars(module))
    plain._modules = {name: child for name, child in module._modules.items() if name != "parametrizations"}
    with torch.no_grad():
        values = {name: nn.Parameter(steps(), requires_grad=False) for name, steps in module.parametrizations.items()}
    plain._parameters = {**module._parameters, **values}
    return plain


def _without_adapters(adapter: Any) -> nn.Module:
    with torch.no_grad():
        adapter.merge(safe_merge=True)
    return adapter.get_base_layer()


def _compute_the_same(module: nn.Module, plain: nn.Module, wanted: nn.Module) -> bool:
    """Compare two layers of a kind that adapters are made for; others, which only parametrizations change, pass."""
    weight = getattr(plain, "weight", None)
    if not isinstance(weight, Tensor) or weight.is_meta:
        return True
    x: Tensor
    if isinstance(wanted, nn.Linear):
        x = torch.linspace(-1, 1, 3 * weight.shape[1]).view(3, -1).cos().to(weight)
    elif isinstance(wanted, nn.Embedding):
        x = torch.arange(len(weight), device=weight.device)
    elif isinstance(wanted, nn.Conv2d):
        x = torch.linspace(-1, 1, 16 * weight.shape[1]).view(1, -1, 4, 4).cos().to(weight)
    else:
        return True
    modes = {part: part.training for part in module.modules()}
    try:
        with torch.no_grad():
            expected = module.eval()(x).double()
            found = plain(x).double()
    finally:
        for part, mode in modes.items():
            part.training = mode
    return bool((found - expected).norm() <= torch.finfo(weight.dtype).eps ** 0.5 * expected.norm())
