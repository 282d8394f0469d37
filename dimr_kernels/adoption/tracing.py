"""Pixel shuffles in the trace of a module's forward, fused into the sums that take their results."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..ops.pixel_shuffle.functional import pixel_shuffle_add
from .purity import why_not_literal, why_not_pure
from .swap import is_adopted

# What gives memory that nobody else holds, so that reading it later than the model did sees the same values.
_FRESH = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d, nn.GroupNorm)


class Unprovable(Exception):
    """Says why a pixel shuffle stays."""


class Returned(Unprovable):
    """The sum, if there is one, is in a module further up."""


def shuffle_and_add(x: Tensor, y: Any, upscale_factor: int) -> Tensor:
    """``shuffle(x) + y``, whatever x and y are; in one pass for ``x [B, C*r*r, H, W]`` and ``y [B, C, r*H, r*W]``."""
    r = upscale_factor
    if isinstance(y, Tensor) and x.dim() == y.dim() == 4 and x.is_floating_point() and y.is_floating_point():
        B, channels, H, W = x.shape
        if y.device == x.device and (y.shape[0], y.shape[1] * r * r, *y.shape[2:]) == (B, channels, H * r, W * r):
            return pixel_shuffle_add(x, y, r, layout="nchw")
    return F.pixel_shuffle(x, r) + y


def way_to(parent: nn.Module, path: str) -> list[nn.Module]:
    """The modules below ``parent`` that lead to ``path``, and what stands there."""
    parts = path.split(".")
    return [parent.get_submodule(".".join(parts[: depth + 1])) for depth in range(len(parts))]


def rewritten(parent: nn.Module, shuffles: tuple[str, ...]) -> Callable[..., Any]:
    """The forward of ``parent``'s own class with the shuffles at these paths fused into the sums.

    Raises:
        Unprovable: with what is missing in the proof that both compute the same.
    """
    with _own_class(parent):
        graph = _trace(parent, shuffles)
    for path in shuffles:
        if type(parent.get_submodule(path)) is not nn.PixelShuffle:
            raise Unprovable(f"{path!r} is a {type(parent.get_submodule(path)).__name__}")
        nodes = [node for node in graph.nodes if node.op == "call_module" and node.target == path]
        if not nodes:
            raise Unprovable(f"its {type(parent).__name__} does not call it")
        for node in nodes:
            _fuse(parent, graph, node)
    graph.lint()
    code = graph.python_code("self")
    scope = dict(code.globals)
    exec(compile(code.src, "<forward with fused pixel shuffle>", "exec"), scope)
    return scope["forward"]


@contextmanager
def _own_class(module: nn.Module) -> Iterator[None]:
    """As it was before it was adopted, if it was."""
    cls = type(module)
    if is_adopted(module):
        module.__class__ = cls.__bases__[1]
    try:
        yield
    finally:
        module.__class__ = cls


class _Tracer(fx.Tracer):
    """Goes into the modules on the way to the shuffles only."""

    proxy_buffer_attributes = True

    def __init__(self, inside: list[nn.Module]) -> None:
        super().__init__()
        self._inside = set(inside)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m not in self._inside


def _trace(parent: nn.Module, shuffles: tuple[str, ...]) -> fx.Graph:
    inside = [module for path in shuffles for module in way_to(parent, path)[:-1]]
    problem = next(filter(None, map(why_not_pure, (parent, *inside))), None)
    if problem is not None:
        raise Unprovable(problem)
    before = set(vars(parent))
    try:
        graph = _Tracer(inside).trace(parent)
    except Exception as error:
        raise Unprovable(f"its {type(parent).__name__} cannot be traced: {type(error).__name__}: {error}") from error
    finally:
        constants = set(vars(parent)) - before  # where a trace keeps tensors that were made in it
        for name in constants:
            delattr(parent, name)
    problem = "makes tensors of its own" if constants else why_not_literal(graph, (parent, *inside))
    if problem is not None:
        raise Unprovable(f"the forward of its {type(parent).__name__} {problem}")
    return graph


def _fuse(parent: nn.Module, graph: fx.Graph, shuffle: fx.Node) -> None:
    total = _sum_of(shuffle)
    first, second = (*total.args, *total.kwargs.values())
    (x,) = (*shuffle.args, *shuffle.kwargs.values())
    if shuffle.next is not total and not _is_held_by_none(parent, x):
        raise Unprovable(f"{shuffle.next.name!r}, which runs before its sum, might change its input")
    with graph.inserting_before(total):
        factor = graph.get_attr(f"{shuffle.target}.upscale_factor")
        fused = graph.call_function(shuffle_and_add, (x, second if first is shuffle else first, factor))
    total.replace_all_uses_with(fused)
    graph.erase_node(total)
    graph.erase_node(shuffle)


def _sum_of(shuffle: fx.Node) -> fx.Node:
    """The only user, which adds the result to something else."""
    if len(shuffle.users) != 1:
        raise Unprovable(f"its result is used {len(shuffle.users)} times")
    (user,) = shuffle.users
    if user.op == "output":
        raise Returned("its result is returned by the model, not added")
    is_sum = user.target in (operator.add, torch.add) or (user.op == "call_method" and user.target == "add")
    operands = (*user.args, *user.kwargs.values())
    if not is_sum or len(operands) != 2 or set(user.kwargs) > {"other"}:
        raise Unprovable(f"its result goes to {user.name!r}, not to a sum of two tensors out of place")
    if operands[0] is operands[1]:
        raise Unprovable("its result is added to itself")
    return user


def _is_held_by_none(parent: nn.Module, x: Any) -> bool:
    """Whether only the shuffle can get hold of this value's memory: the shuffle moves to where its sum is."""
    if not isinstance(x, fx.Node) or x.op != "call_module" or len(x.users) != 1:
        return False
    return type(parent.get_submodule(str(x.target))) in _FRESH
