"""Activation checkpointing: what the backward keeps of the forward, and what it computes again.

``none`` keeps everything. ``blocks`` keeps the input of each block and runs the block again. ``selective`` keeps the
results of matrix products, attention and convolutions, and computes again what costs one pass over memory: norms,
GeGLU products, sums, concatenations and casts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import dimr_kernels as dk

MODES = ("none", "blocks", "selective")

_KEPT = {
    "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::convolution",
    "aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention", "aten::_scaled_dot_product_cudnn_attention",
    "flash_attn::_flash_attn_forward", "dimr_kernels::depthwise_conv2d", "dimr_kernels::geglu_linear",
}  # fmt: skip


def check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"checkpointing must be one of {', '.join(map(repr, MODES))}; got {mode!r}")


def checkpointed(mode: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)``, of which the backward keeps what ``mode`` says.

    Nothing random may happen inside: the states of the random number generators are not put back.
    """
    if mode == "none" or not torch.is_grad_enabled():
        return function(*arguments)
    options: dict[str, Any] = {}
    if torch.compiler.is_compiling():  # traced code runs the same implementation both times anyway
        if mode == "selective":
            options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    else:
        options["context_fn"] = partial(_contexts, mode)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False, **options)


def _policy(context: Any, operator: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    kept = operator.name().partition(".")[0] in _KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def _contexts(mode: str) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Contexts of the forward and of running it again.

    The backward may be called outside of a ``with use_backend(...)`` around the forward, and runs in a thread of
    torch's own on a GPU: there the implementations have to be named again.
    """
    same = dk.use_backend(dk.current_backend())
    if mode == "blocks":
        return contextlib.nullcontext(), same
    forward, again = create_selective_checkpoint_contexts(_policy)
    return _nested(_without_autocast_cache(), forward), _nested(same, again)


@contextlib.contextmanager
def _nested(outer: AbstractContextManager[Any], inner: AbstractContextManager[Any]) -> Iterator[None]:
    with outer, inner:
        yield


@contextlib.contextmanager
def _without_autocast_cache() -> Iterator[None]:
    """A weight that an earlier forward left in autocast's cache would be cast again in the backward only, and torch
    refuses to run other operators there than in the forward."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)
