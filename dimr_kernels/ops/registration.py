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

NAMESPACE = "dimr_kernels"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")

_PLAIN_TYPES = frozenset((Tensor, torch.nn.Parameter, type(None), bool, int, float, str, list, torch.dtype))
_BACKEND_SELECT = torch._C.DispatchKeySet(torch._C.DispatchKey.BackendSelect)
_VIEWS = torch._C.DispatchKeySet(torch._C.DispatchKey.ADInplaceOrView)
# What torch's dispatcher adds to every call of this thread when nothing has asked for more; less in inference mode.
_QUIET = frozenset(keys.raw_repr() for keys in (_BACKEND_SELECT, _BACKEND_SELECT | _VIEWS))


def is_watched(arguments: tuple[Any, ...]) -> bool:
    """Whether a call has to go through torch's dispatcher, because something besides autograd may act on it.

    That is so under torch.compile, dispatch modes (fake tensors, tracing, activation checkpointing that selects),
    function modes, ``torch.func`` transforms and ``torch.jit.trace``, and for subclasses of Tensor and symbolic sizes.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._dispatch_tls_local_include_set().raw_repr() not in _QUIET
        or torch._C._is_torch_function_mode_enabled()
        or not _PLAIN_TYPES.issuperset(map(type, arguments))
    )


class Operator:
    """A registered operator. Calling it gives what ``overload`` gives, in a plain eager call without the dispatcher."""

    def __init__(
        self, overload: torch._ops.OpOverload, kernel: Callable[..., Any], inference: Callable[..., Any]
    ) -> None:
        self.overload = overload
        self._kernel = kernel
        self._inference = inference
        self._function: type[torch.autograd.Function] | None = None

    def __call__(self, *arguments: Any) -> Any:
        if is_watched(arguments):
            return self.overload(*arguments)
        if not torch.is_grad_enabled():
            return self._inference(*arguments)
        if self._function is None:
            return self.overload(*arguments)
        return self._function.apply(*arguments)

    def differentiate(self, setup_context: Callable[..., None], backward: Callable[..., Any]) -> None:
        torch.library.register_autograd(self.overload, backward, setup_context=setup_context, lib=_library)
        kernel = self._kernel

        def forward(ctx: Any, *arguments: Any) -> Any:
            output = kernel(*arguments)
            setup_context(ctx, arguments, output)
            return output

        members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        self._function = type(self.overload.name().replace("::", "_"), (torch.autograd.Function,), members)


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
    kernel = kernel or _below_autograd(overload)
    return Operator(overload, kernel, inference or kernel)


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

    torch.library.register_autograd(op.overload, backward, lib=_library)
