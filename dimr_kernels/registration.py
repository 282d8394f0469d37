"""Registration of operators with torch (schema, CPU and CUDA kernels, fake, autograd, vmap) and their eager calls.

The low-level ``torch.library.Library`` is used, not ``custom_op``: it costs about a third per call on the host. Even
so torch's dispatcher spends more on an operator in Python than our kernels' host code does, several times more with a
gradient. A plain eager call needs nothing of that: there :class:`Operator` calls the kernel directly. Host time of one
call on a CPU core, launch left out: TD-LN 19 us against 47 us through the dispatcher, GeGLU 9 us against 25 us.

Finding out that a call is plain takes private names of torch, all bound by :func:`_bind_private_names` below. If a
future torch lacks one, every call takes the dispatcher, with the same results at a higher cost per call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .dispatch import constant_when_traced, extension_status
from .flops import Formula, register_flops

NAMESPACE = "dimr_kernels"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")

_TENSORS = (Tensor, torch.nn.Parameter)
_PLAIN_TYPES = frozenset((*_TENSORS, type(None), bool, int, float, str, list, torch.dtype))


@dataclass(frozen=True)
class _PrivateNames:
    """Private parts of torch that the direct call of a kernel rests on."""

    included_keys: Callable[[], Any]
    """Dispatch keys that this thread adds to every call."""
    usual_keys: frozenset[Any]
    """Values of ``included_keys().raw_repr()`` if no mode or transform is active, in and out of inference mode."""
    is_key_excluded: Callable[[Any], bool]
    autograd_key: Any
    in_function_mode: Callable[[], bool]
    below_autograd: Callable[[], Any]
    """Context manager that leaves out autograd, here its kernel in Python that stands before a compiled operator."""


def _bind_private_names(torch_c: Any, forward_mode: Any) -> _PrivateNames | None:
    """Return the names, looked up in ``torch._C`` and ``torch.autograd.forward_ad``, or None if one is missing."""
    try:
        keys = torch_c.DispatchKey
        select, views = torch_c.DispatchKeySet(keys.BackendSelect), torch_c.DispatchKeySet(keys.ADInplaceOrView)
        names = _PrivateNames(
            included_keys=torch_c._dispatch_tls_local_include_set,
            usual_keys=frozenset((select.raw_repr(), (select | views).raw_repr())),
            is_key_excluded=torch_c._dispatch_tls_is_dispatch_key_excluded,
            autograd_key=keys.AutogradFunctionality,
            in_function_mode=torch_c._is_torch_function_mode_enabled,
            below_autograd=torch_c._AutoDispatchBelowAutograd,
        )
        names.included_keys().raw_repr()
        _ = forward_mode._current_level, torch_c._functorch.get_interpreter_stack
        _ = torch_c._functorch.TransformType.Grad, torch_c._functorch.TransformType.Jvp
    except AttributeError:
        return None
    return names


_private = _bind_private_names(torch._C, forward_ad)
_FAST_PATH = _private is not None


def is_plain_call(arguments: tuple[Any, ...]) -> bool:
    """Return True if nothing besides autograd may act on a call, so that torch's dispatcher can be left out.

    False under torch.compile, dispatch modes (fake tensors, tracing, activation checkpointing that selects), function
    modes, ``torch.func`` transforms, forward-mode differentiation and ``torch.jit.trace``, and for subclasses of
    Tensor, symbolic sizes and views that stand for the negative of their memory (``z.conj().imag``).
    """
    return (
        _FAST_PATH
        and not torch.compiler.is_compiling()
        and forward_ad._current_level < 0
        and _private.included_keys().raw_repr() in _private.usual_keys  # type: ignore[union-attr]
        and not _private.in_function_mode()  # type: ignore[union-attr]
        and _PLAIN_TYPES.issuperset(map(type, arguments))
        and not any([x.is_neg() for x in arguments if type(x) is Tensor])
    )


@constant_when_traced  # in traced code: the transforms that it is traced under
def _transforms_differentiate() -> bool:
    """Return True if one of the active ``torch.func`` transforms takes derivatives."""
    if not _FAST_PATH:
        # Unknown. In eager code the form that torch.func can take apart is right in any case, only slower.
        return not torch.compiler.is_compiling()
    kinds = (torch._C._functorch.TransformType.Grad, torch._C._functorch.TransformType.Jvp)
    return any(interpreter.key() in kinds for interpreter in torch._C._functorch.get_interpreter_stack() or ())


class Operator:
    """A registered operator: a call gives what ``overload`` gives, for a plain eager call without the dispatcher."""

    def __init__(self, overload: Any, kernel: Callable[..., Any], inference: Callable[..., Any]) -> None:
        self.overload = overload
        self._kernel = kernel
        self._inference = inference
        self._function: type[torch.autograd.Function] | None = None
        self._transformed: type[torch.autograd.Function] | None = None

    def __call__(self, *arguments: Any) -> Any:
        if not is_plain_call(arguments):
            return self._dispatched(arguments)
        if not torch.is_grad_enabled():
            return self._inference(*arguments)
        if self._function is None or _private.is_key_excluded(_private.autograd_key):  # type: ignore[union-attr]
            return self.overload(*arguments)
        if not any([x.requires_grad for x in arguments if type(x) in _TENSORS]):
            return self._inference(*arguments)
        return self._function.apply(*arguments)

    def _dispatched(self, arguments: tuple[Any, ...]) -> Any:
        """Call through the dispatcher, with an autograd function of our own for ``torch.func`` and forward mode.

        The autograd that torch.library registers refuses ``torch.func``, and drops the tangents of forward mode.
        """
        if self._transformed is None:
            return self.overload(*arguments)
        if not (_FAST_PATH and forward_ad._current_level >= 0) and not _transforms_differentiate():
            return self.overload(*arguments)
        if torch.compiler.is_compiling():
            torch._dynamo.graph_break(msg="dimr_kernels: torch.func's derivatives of fused operators run eagerly")
        return self._transformed.apply(*arguments)

    def differentiate(self, setup_context: Callable[..., None], backward: Callable[..., Any]) -> None:
        torch.library.register_autograd(self.overload, backward, setup_context=setup_context, lib=_library)
        self._function = _plain_function(self.overload, self._kernel, setup_context, backward)
        self._transformed = _transformed_function(self.overload, setup_context, backward)

    def refuse_differentiation(self, backward: Callable[..., Any]) -> None:
        torch.library.register_autograd(self.overload, backward, lib=_library)
        self._transformed = _transformed_function(self.overload, lambda *_: None, backward)


def _plain_function(
    overload: Any, kernel: Callable[..., Any], setup_context: Callable[..., None], backward: Callable[..., Any]
) -> type[torch.autograd.Function]:
    def forward(ctx: Any, *arguments: Any) -> Any:
        output = kernel(*arguments)
        setup_context(ctx, arguments, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(overload.name().replace("::", "_"), (torch.autograd.Function,), members)


def _transformed_function(
    overload: Any, setup_context: Callable[..., None], backward: Callable[..., Any]
) -> type[torch.autograd.Function]:
    """Make the function in the form that ``torch.func`` can take apart, which costs more per call."""
    name = overload.name()

    def forward(*arguments: Any) -> Any:
        output = overload(*arguments)
        return tuple(output) if isinstance(output, list) else output  # vmap loses count of a list

    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise RuntimeError(
            f"{name}: it has no forward-mode derivative; for forward mode (jvp, jacfwd, hessian, dual tensors) compute "
            f"under dimr_kernels.use_backend('eager')"
        )

    members = {
        "forward": staticmethod(forward),
        "setup_context": staticmethod(setup_context),
        "backward": staticmethod(backward),
        "jvp": staticmethod(jvp),
        "generate_vmap_rule": True,
    }
    return type(f"{name.replace('::', '_')}_transformed", (torch.autograd.Function,), members)


def define_op(
    schema: str,
    *,
    kernel: Callable[..., Any] | None,
    fake: Callable[..., Any],
    inference: Callable[..., Any] | None = None,
    devices: tuple[str, ...] = ("CPU", "CUDA"),
    flops: Formula | None = None,
) -> Operator:
    """Register ``schema`` ("name(arguments) -> results") and return the operator.

    ``kernel`` is None if the compiled extension registers the implementations itself. ``inference`` takes the kernel's
    place where no gradient is recorded; results that only a backward reads may be None there. ``flops`` counts the
    matrix products and convolutions inside (:mod:`dimr_kernels.flops`).
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    if kernel is not None:
        for key in devices:
            _library.impl(name, kernel, key)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    packet = getattr(torch.ops.dimr_kernels, name)
    overload = packet.default
    if flops is not None:
        register_flops(packet, flops)
    torch.library.register_vmap(overload, _one_by_one(overload), lib=_library)
    kernel = kernel or _below_autograd(overload)
    return Operator(overload, kernel, inference or kernel)


Operators = dict[str, Operator]
"""The operators of a schema by their fused form."""
_DEVICES = {"triton": ("CPU", "CUDA"), "cpp": ("CPU",)}  # Triton's interpreter takes CPU tensors


def define_forms(
    schema: str,
    *,
    kernels: Mapping[str, Callable[..., Any]],
    fake: Callable[..., Any],
    inference: Mapping[str, Callable[..., Any]] | None = None,
    flops: Formula | None = None,
) -> Operators:
    """Register an operator for each fused form of one schema, with a kernel of its own and everything else alike.

    Triton's has the schema's name, the C++ one ``_cpp`` behind it. Arguments as for :func:`define_op`, by form.
    """
    name, rest = schema.partition("(")[0], schema[schema.index("(") :]
    stem = name.rstrip("_")
    names = {"triton": name, "cpp": f"{stem}_cpp{name[len(stem) :]}"}
    return {
        form: define_op(
            names[form] + rest,
            kernel=kernel,
            fake=fake,
            inference=None if inference is None else inference[form],
            devices=_DEVICES[form],
            flops=flops,
        )
        for form, kernel in kernels.items()
    }


def define_gradients(
    operator: str,
    forms: Operators,
    backwards: Operators,
    *,
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> None:
    """Give each form a gradient: ``backward(op, ctx, *output_gradients)``, with ``op`` the form's own of ``backwards``.

    The operators of ``backwards`` refuse to be differentiated; ``operator`` is the public name in their message.
    """
    for form, op in forms.items():
        define_gradient(op, setup_context=setup_context, backward=partial(backward, backwards[form]))
        refuse_double_backward(backwards[form], operator)


def cpp_kernel(name: str) -> Callable[..., Any]:
    """Return a function that calls ``dimr_kernels_cpp::name`` of the compiled extension and loads it if need be."""

    @cache
    def overload() -> Callable[..., Any]:
        extension_status()
        return getattr(torch.ops.dimr_kernels_cpp, name).default

    def call(*arguments: Any) -> Any:
        return overload()(*arguments)

    return call


def _one_by_one(overload: Any) -> Callable[..., Any]:
    """Make a rule for vmap that calls the operator once for each entry.

    torch would do the same where an operator has no rule, but for lists of results, and complain on standard error.
    """

    def rule(info: Any, dimensions: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        def entry(i: int) -> Any:
            pairs = zip(arguments, dimensions, strict=True)
            return overload(*(x.select(dimension, i) if isinstance(dimension, int) else x for x, dimension in pairs))

        entries = [entry(i) for i in range(info.batch_size)]
        if isinstance(entries[0], Tensor):
            return torch.stack(entries), 0
        if entries[0] is None:  # it writes into an argument
            return None, None
        kind = type(entries[0])  # tuple or list
        stacked = kind(torch.stack(parts) for parts in zip(*entries, strict=True))
        return stacked, kind([0] * len(stacked))

    return rule


def _below_autograd(overload: Any) -> Callable[..., Any]:
    """Make a direct call of a compiled operator, for plain calls; others take ``overload``."""

    def call(*arguments: Any) -> Any:
        with _private.below_autograd():  # type: ignore[union-attr]
            return overload(*arguments)

    return call


def define_gradient(op: Operator, *, setup_context: Callable[..., None], backward: Callable[..., Any]) -> None:
    """Give ``op`` a gradient: ``backward(ctx, *output_gradients)`` returns one gradient (or None) per argument."""
    op.differentiate(setup_context, backward)


def refuse_double_backward(op: Operator, operator: str) -> None:
    """Make differentiating ``op``, which computes gradients, an error that says what to do instead."""

    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(
            f"{operator}: its fused backward has no derivative of its own; for a double backward run the forward "
            f"under dimr_kernels.use_backend('eager')"
        )

    op.refuse_differentiation(backward)
