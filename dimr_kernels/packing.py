"""Head dims that no flash kernel takes as they are: padded once in the weights, never in the activations.

Flash kernels want a multiple of 8; for any other head dim torch copies q, k and v into padded tensors in every call.
Zero rows in the query, key and value projection and zero columns in the output projection give the same result, with
the attention scale left at ``1/sqrt(head_dim)`` of the unpadded head. Training keeps them zero: the gradient of every
padded weight is exactly zero (padded queries, keys and values are multiplied by zeros of one another, padded outputs
by zero columns), and so is their weight decay.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks


def padded_head_dim(head_dim: int, multiple: int = 8) -> int:
    """The next multiple: 60 -> 64; 64 and 72 stay.

    Example:
        >>> padded_head_dim(60), padded_head_dim(72)
        (64, 72)
    """
    if head_dim < 1 or multiple < 1:
        raise ValueError(f"padded_head_dim: head_dim and multiple must be positive, got {head_dim} and {multiple}")
    return -(-head_dim // multiple) * multiple


def flash_would_copy(x: Tensor, head_dim: int) -> bool:
    """Whether flash attention over a projection of ``x`` would pad its inputs: on a GPU, in float16 or bfloat16."""
    dtype = checks.autocast_dtype(x) or x.dtype
    half = dtype in (torch.float16, torch.bfloat16)
    return x.device.type == "cuda" and half and padded_head_dim(head_dim) != head_dim


def _heads(operator: str, name: str, size: int, groups: int) -> int:
    if groups < 1 or size % groups:
        raise ValueError(f"{operator}: {name} has {size} entries, not a multiple of {groups}")
    return size // groups


def pad_qkv(weight: Tensor, num_heads: int, multiple: int = 8) -> Tensor:
    """``[3 * heads * head_dim, ...]`` (weight or bias, in the order q, k, v; head; channel) with zero rows added."""
    head_dim = _heads("pad_qkv", "weight's first dimension", weight.shape[0], 3 * num_heads)
    missing = padded_head_dim(head_dim, multiple) - head_dim
    if not missing:
        return weight
    heads = weight.unflatten(0, (3 * num_heads, head_dim))  # [3 * heads, head_dim, ...]
    return F.pad(heads, (0, 0) * (heads.dim() - 2) + (0, missing)).flatten(0, 1)


def pad_out(weight: Tensor, num_heads: int, multiple: int = 8) -> Tensor:
    """The output projection's weight ``[D, heads * head_dim]`` with zero columns added."""
    head_dim = _heads("pad_out", "weight's last dimension", weight.shape[-1], num_heads)
    missing = padded_head_dim(head_dim, multiple) - head_dim
    if not missing:
        return weight
    return F.pad(weight.unflatten(-1, (num_heads, head_dim)), (0, missing)).flatten(-2)


def unpad_qkv(weight: Tensor, num_heads: int, head_dim: int) -> Tensor:
    """The inverse of :func:`pad_qkv`: the first ``head_dim`` rows of each head."""
    padded = _heads("unpad_qkv", "weight's first dimension", weight.shape[0], 3 * num_heads)
    _check_room("unpad_qkv", padded, head_dim)
    return weight.unflatten(0, (3 * num_heads, padded))[:, :head_dim].flatten(0, 1)


def unpad_out(weight: Tensor, num_heads: int, head_dim: int) -> Tensor:
    """The inverse of :func:`pad_out`: the first ``head_dim`` columns of each head."""
    padded = _heads("unpad_out", "weight's last dimension", weight.shape[-1], num_heads)
    _check_room("unpad_out", padded, head_dim)
    return weight.unflatten(-1, (num_heads, padded))[..., :head_dim].flatten(-2)


def _check_room(operator: str, padded: int, head_dim: int) -> None:
    if not 1 <= head_dim <= padded:
        raise ValueError(f"{operator}: head_dim must be between 1 and {padded}, the padded head dim; got {head_dim}")


def pad_head_dim(qkv_weight: Tensor, out_weight: Tensor, num_heads: int, multiple: int = 8) -> tuple[Tensor, Tensor]:
    """Both weights of an attention layer with the head dim padded to a multiple; unchanged where it is one already.

    Args:
        qkv_weight: ``[3 * heads * head_dim, D]``, rows in the order q, k, v; head; channel.
        out_weight: ``[D, heads * head_dim]``.
        num_heads: heads.
        multiple: what the padded head dim is a multiple of.

    Returns:
        ``[3 * heads * padded, D]`` and ``[D, heads * padded]``; differentiable, so a training step may pad the weights
        (not the activations) in its forward. Attention over them needs ``scale=head_dim**-0.5`` of the unpadded head.

    Example:
        >>> qkv, out = torch.randn(3 * 2 * 6, 12), torch.randn(12, 2 * 6)  # two heads of 6
        >>> [list(weight.shape) for weight in pad_head_dim(qkv, out, num_heads=2)]
        [[48, 12], [12, 16]]
    """
    checks.check_floating("pad_head_dim", qkv_weight=qkv_weight, out_weight=out_weight)
    checks.check_rank("pad_head_dim", "qkv_weight", qkv_weight, 2, "[3 * heads * head_dim, D]")
    checks.check_rank("pad_head_dim", "out_weight", out_weight, 2, "[D, heads * head_dim]")
    if qkv_weight.shape[0] != 3 * out_weight.shape[1]:
        raise ValueError(
            f"pad_head_dim: qkv_weight must have 3 rows per column of out_weight, got shapes "
            f"{list(qkv_weight.shape)} and {list(out_weight.shape)}"
        )
    return pad_qkv(qkv_weight, num_heads, multiple), pad_out(out_weight, num_heads, multiple)


def unpad_head_dim(qkv_weight: Tensor, out_weight: Tensor, num_heads: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """The inverse of :func:`pad_head_dim`, given the unpadded ``head_dim``."""
    return unpad_qkv(qkv_weight, num_heads, head_dim), unpad_out(out_weight, num_heads, head_dim)
