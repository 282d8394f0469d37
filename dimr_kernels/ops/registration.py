"""How every operator is registered with torch: schema, CPU and CUDA kernels, fake, autograd; and how it is called.

The low-level ``torch.library.Library`` is used, not ``custom_op``: it costs about a third per call on the host. Even
so torch's dispatcher spends more on an operator in Python than our kernels' host code does, several times more with a
gradient, and in a plain eager call nobody looks at what it does. There :class:`Operator` leaves it out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..traced import constant_when_traced

NAMESPACE = "dimr_kernels"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")

_PLAIN_TYPES = frozenset((Tensor, torch.nn.Parameter, type(None), bool, int, float, str, list, torch.dtype))
_BACKEND_SELECT = torch._C.DispatchKeySet(torch._C.DispatchKey.BackendSelect)
_AUTOGRAD = torch._C.DispatchKey.AutogradFunctionality
_VIEWS = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)
# What torch's dispatcher adds to every call of this thread when nothing has asked for more; less in inference mode.
_QUIET = frozenset(keys.raw_repr() for keys in (_BACKEND_SELECT, _BACKEND_SELECT | _VIEWS))


def is_watched(arguments: tuple[Any, ...]) -> bool:
    """Whether a call has to go through torch's dispatcher, because something besides autograd may act on it.

    That is so under torch.compile, dispatch modes (fake tensors, tracing, activation checkpointing that selects),
    function modes, ``torch.func`` transforms, forward-mode differentiation and ``torch.jit.trace``, and for subclasses
    of Tensor, symbolic sizes and views that stand for the negative of their memory (``z.conj().imag``).
    """
    return (
        torch.compiler.is_compiling()
        or forward_ad._current_level >= 0
        or torch._C._dispatch_tls_local_include_set().raw_repr() not in _QUIET
        or torch._C._is_torch_function_mode_enabled()
        or not _PLAIN_TYPES.issuperset(map(type, arguments))
        or any([x.is_neg() for x in arguments if type(x) is Tensor])
    )


@constant_when_traced  # in traced code: those that it is traced under
def _transforms_differentiate() -> bool:
    """Whether one of the ``torch.func`` transforms in force takes derivatives."""
    kinds = (torch._C._functorch.TransformType.Grad, torch._C._functorch.TransformType.Jvp)
    return any(interpreter.key() in kinds for interpreter in torch._C._functorch.get_interpreter_stack() or ())


class Operator:
    """A registered operator. Calling it gives what ``overload`` gives, in a plain eager call without the dispatcher."""

    def __init__(
        self, overload: torch._ops.OpOverload, kernel: Callable[..., Any], inference: Callable[..., Any]
    ) -> None:
        self.overload = overload
        self._kernel = kernel
        self._inference = inference
        self._function: type[torch.autograd.Function] | None = None
        self._transformed: type[torch.autograd.Function] | None = None

    def __call__(self, *arguments: Any) -> Any:
        if is_watched(arguments):
            return self._dispatched(arguments)
        if not torch.is_grad_enabled():
            return self._inference(*arguments)
        if self._function is None or torch._C._dispatch_tls_is_dispatch_key_excluded(_AUTOGRAD):
            return self.overload(*arguments)
        return self._function.apply(*arguments)

    def _dispatched(self, arguments: tuple[Any, ...]) -> Any:
        """The autograd that torch.library registers refuses ``torch.func``, and drops the tangents of forward mode."""
        differentiated = forward_ad._current_level >= 0 or _transforms_differentiate()
        if self._transformed is None or not differentiated:
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
    overload: torch._ops.OpOverload,
    kernel: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> type[torch.autograd.Function]:
    def forward(ctx: Any, *arguments: Any) -> Any:
        output = kernel(*arguments)
        setup_context(ctx, arguments, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(overload.name().replace("::", "_"), (torch.autograd.Function,), members)


def _transformed_function(
    overload: torch._ops.OpOverload, setup_context: Callable[..., None], backward: Callable[..., Any]
) -> type[torch.autograd.Function]:
    """In the form that ``torch.func`` takes apart; it costs more per call."""
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
) -> Operator:
    """Register ``schema`` ("name(arguments) -> results") and return the operator.

    ``kernel`` is None where the compiled extension registers the implementations itself. ``inference`` takes the
    kernel's place where no gradient is recorded; results that only a backward reads may be None there.
    """
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    if kernel is not None:
        for key in ("CPU", "CUDA"):
            _library.impl(name, kernel, key)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    overload = getattr(torch.ops.dimr_kernels, name).default
    if schema.endswith("-> Tensor[]"):  # for others torch has such a rule itself
        torch.library.register_vmap(overload, _one_by_one(overload), lib=_library)
    kernel = kernel or _below_autograd(overload)
    return Operator(overload, kernel, inference or kernel)


def _one_by_one(overload: torch._ops.OpOverload) -> Callable[..., Any]:
    """A rule for vmap: one call for each entry."""

    def rule(info: Any, dimensions: tuple[Any, ...], *arguments: Any) -> tuple[list[Tensor], list[int]]:
        def entry(i: int) -> list[Tensor]:
            pairs = zip(arguments, dimensions, strict=True)
            return overload(*(x.select(dimension, i) if isinstance(dimension, int) else x for x, dimension in pairs))

        results = [torch.stack(parts) for parts in zip(*map(entry, range(info.batch_size)), strict=True)]
        return results, [0] * len(results)

    return rule


def _below_autograd(overload: torch._ops.OpOverload) -> Callable[..., Any]:
    """A compiled operator without the autograd kernel in Python that stands before it."""

    def call(*arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return overload(*arguments)

    return call


def define_gradient(op: Operator, *, setup_context: Callable[..., None], backward: Callable[..., Any]) -> None:
    """``backward(ctx, *output_gradients)`` returns one gradient (or None) per argument of ``op``."""
    op.differentiate(setup_context, backward)


def refuse_double_backward(op: Operator, operator: str) -> None:
    """For an operator that computes gradients: differentiating it again raises an error that says what to do."""

    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(
            f"{operator}: its fused backward has no derivative of its own; for a double backward run the forward "
            f"under dimr_kernels.use_backend('eager')"
        )

    op.refuse_differentiation(backward)
