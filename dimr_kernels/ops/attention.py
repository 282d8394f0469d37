"""Attention over ``[B, heads, L, head_dim]``: definition, public function, module, and padding of the head dim.

Flash kernels want a head dim that is a multiple of 8; for any other torch copies q, k and v into padded tensors in
every call. Here the weights are padded instead: zero rows in the query, key and value projection and zero columns in
the output projection give the same result, with the scale left at ``1/sqrt(head_dim)`` of the unpadded head. Training
keeps them zero: the gradient of every padded weight is exactly zero (padded queries, keys and values are multiplied by
zeros of one another, padded outputs by zero columns), and so is their weight decay.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import checks
from ..dispatch import current_backend, is_exporting
from . import attention_backends
from .linear import apply_linear

BACKENDS = ("auto", *attention_backends.RULES, "eager")

# Scores (batch x heads x queries x keys) up to which "auto" multiplies whole matrices on a CPU, as measured
# (docs/performance.md): 4 MB of them stay in the caches, and torch's flash attention multiplies many small blocks.
MOST_SCORES_ON_CPU = 2**20


def attention_definition(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention in plain PyTorch (Vaswani et al. 2017, eq. 1), without mask and dropout.

    ``q [B, heads, L, E]``, ``k [B, heads, S, E]``, ``v [B, heads, S, Ev]`` -> ``[B, heads, L, Ev]``. torch computes
    the softmax of float16 and bfloat16 in float32.
    """
    scores = (q * scale) @ k.transpose(-2, -1)  # [B, heads, L, S]
    return scores.softmax(dim=-1).to(v.dtype) @ v


def _products_are_faster(q: Tensor, k: Tensor) -> bool:
    if q.device.type != "cpu" or current_backend() not in ("auto", "cpp"):
        return False
    if is_exporting():  # a program takes any batch size
        return False
    B, heads, L, _ = q.shape
    return B * heads * L * k.shape[2] <= MOST_SCORES_ON_CPU


def _attention_by_products(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Compute the definition, of 16-bit tensors in float32, as torch's fused kernels do."""
    if q.dtype not in attention_backends.HALF_DTYPES:
        return attention_definition(q, k, v, scale)
    with torch.autocast(q.device.type, enabled=False):  # it would cast them back
        return attention_definition(q.float(), k.float(), v.float(), scale).to(q.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, backend: str = "auto", scale: float | None = None) -> Tensor:
    """Scaled dot-product attention without mask: ``softmax(q k^T * scale) v`` (Vaswani et al. 2017, eq. 1).

    Args:
        q: ``[B, heads, L, head_dim]``. q, k and v may be views of one packed projection: nothing is copied as long as
            the last stride is 1 and the head dim a multiple of 8 (see :func:`dimr_kernels.pad_head_dim`).
        k: ``[B, heads, S, head_dim]``.
        v: ``[B, heads, S, value_dim]``.
        backend: "auto" takes flash-attn where it is installed and the input suits it, else the best kernel of torch's
            scaled_dot_product_attention, or on a CPU for few scores plain products in float32; "flash_attn", "flash",
            "cudnn", "efficient" and "math" are binding; "eager" is the definition in plain PyTorch.
        scale: None is ``1/sqrt(head_dim)``.

    ``use_backend("eager")`` turns "auto" into "eager". ``use_backend("triton")`` and ``use_backend("cuda")`` leave
    attention to torch's and flash-attn's kernels, for this package has none.

    Returns:
        ``[B, heads, L, value_dim]`` in q's dtype, or autocast's.

    Raises:
        ValueError, TypeError: an argument's shape, dtype or device does not fit.
        BackendError: the backend asked for cannot compute this call; the message says why.

    Example:
        >>> import torch
        >>> q, k, v = torch.randn(3, 2, 4, 5, 16)  # batch 2, 4 heads, 5 tokens
        >>> attention(q, k, v).shape
        torch.Size([2, 4, 5, 16])
    """
    checks.check_choice("attention", "backend", backend, BACKENDS)
    checks.check_floating("attention", q=q, k=k, v=v)
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        checks.check_rank("attention", name, tensor, 4, "[B, heads, L, head_dim]")
    if q.shape[3] == 0:
        raise ValueError(f"attention: q must have a positive head_dim, got shape {list(q.shape)}")
    checks.check_shape("attention", "k", k, (q.shape[0], q.shape[1], k.shape[2], q.shape[3]))
    checks.check_shape("attention", "v", v, (q.shape[0], q.shape[1], k.shape[2], v.shape[3]))
    checks.check_same_device("attention", q=q, k=k, v=v)
    if scale is not None:
        checks.check_number("attention", "scale", scale)
    dtype = checks.autocast_dtype(q)
    if dtype is not None:
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    checks.check_same_dtype("attention", q=q, k=k, v=v)
    if backend == "auto" and current_backend() == "eager":
        backend = "eager"
    by_products = backend == "auto" and _products_are_faster(q, k)
    if backend == "eager" or by_products:
        function = _attention_by_products if by_products else attention_definition
        return function(q, k, v, q.shape[3] ** -0.5 if scale is None else scale)
    # None stays None: computed from a symbolic head dim it would be a constant of compiled code, which torch's cache of
    # compiled graphs (2.13) returns for another head dim as well.
    return attention_backends.attention(q, k, v, backend, scale)


def padded_head_dim(head_dim: int, multiple: int = 8) -> int:
    """Return the next multiple: 60 -> 64; 64 and 72 stay.

    Example:
        >>> padded_head_dim(60), padded_head_dim(72)
        (64, 72)
    """
    if head_dim < 1 or multiple < 1:
        raise ValueError(f"padded_head_dim: head_dim and multiple must be positive, got {head_dim} and {multiple}")
    return -(-head_dim // multiple) * multiple


def flash_would_copy(x: Tensor, head_dim: int) -> bool:
    """Return True if flash attention over a projection of ``x`` pads its inputs: on a GPU, in float16 or bfloat16."""
    dtype = checks.autocast_dtype(x) or x.dtype
    half = dtype in (torch.float16, torch.bfloat16)
    return x.device.type == "cuda" and half and padded_head_dim(head_dim) != head_dim


def _heads(operator: str, name: str, size: int, groups: int) -> int:
    if groups < 1 or size % groups:
        raise ValueError(f"{operator}: {name} has {size} entries, not a multiple of {groups}")
    return size // groups


def pad_qkv(weight: Tensor, num_heads: int, multiple: int = 8) -> Tensor:
    """Add zero rows to ``[3 * heads * head_dim, ...]``, a weight or bias in the order q, k, v; head; channel."""
    head_dim = _heads("pad_qkv", "weight's first dimension", weight.shape[0], 3 * num_heads)
    missing = padded_head_dim(head_dim, multiple) - head_dim
    if not missing:
        return weight
    heads = weight.unflatten(0, (3 * num_heads, head_dim))  # [3 * heads, head_dim, ...]
    return F.pad(heads, (0, 0) * (heads.dim() - 2) + (0, missing)).flatten(0, 1)


def pad_out(weight: Tensor, num_heads: int, multiple: int = 8) -> Tensor:
    """Add zero columns to the output projection's weight ``[D, heads * head_dim]``."""
    head_dim = _heads("pad_out", "weight's last dimension", weight.shape[-1], num_heads)
    missing = padded_head_dim(head_dim, multiple) - head_dim
    if not missing:
        return weight
    return F.pad(weight.unflatten(-1, (num_heads, head_dim)), (0, missing)).flatten(-2)


def unpad_qkv(weight: Tensor, num_heads: int, head_dim: int) -> Tensor:
    """Invert :func:`pad_qkv`: keep the first ``head_dim`` rows of each head."""
    padded = _heads("unpad_qkv", "weight's first dimension", weight.shape[0], 3 * num_heads)
    _check_head_dim("unpad_qkv", padded, head_dim)
    return weight.unflatten(0, (3 * num_heads, padded))[:, :head_dim].flatten(0, 1)


def unpad_out(weight: Tensor, num_heads: int, head_dim: int) -> Tensor:
    """Invert :func:`pad_out`: keep the first ``head_dim`` columns of each head."""
    padded = _heads("unpad_out", "weight's last dimension", weight.shape[-1], num_heads)
    _check_head_dim("unpad_out", padded, head_dim)
    return weight.unflatten(-1, (num_heads, padded))[..., :head_dim].flatten(-2)


def _check_head_dim(operator: str, padded: int, head_dim: int) -> None:
    if not 1 <= head_dim <= padded:
        raise ValueError(f"{operator}: head_dim must be between 1 and {padded}, the padded head dim; got {head_dim}")


def pad_head_dim(qkv_weight: Tensor, out_weight: Tensor, num_heads: int, multiple: int = 8) -> tuple[Tensor, Tensor]:
    """Pad the head dim in both weights of an attention layer to a multiple; if it is one already, change nothing.

    Args:
        qkv_weight: ``[3 * heads * head_dim, D]``, rows in the order q, k, v; head; channel.
        out_weight: ``[D, heads * head_dim]``.
        num_heads: heads.
        multiple: the padded head dim is a multiple of it.

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
    """Invert :func:`pad_head_dim`, given the unpadded ``head_dim``."""
    return unpad_qkv(qkv_weight, num_heads, head_dim), unpad_out(out_weight, num_heads, head_dim)


class SelfAttention(nn.Module):
    """Projection to queries, keys and values, attention without mask, and the projection back.

    Args:
        dim: width of the input and of the result.
        num_heads: must divide ``dim``.
        qkv_bias, out_bias: give the projections a bias.
        backend: as for :func:`dimr_kernels.functional.attention`.

    Shape: ``[B, L, dim]`` -> ``[B, L, dim]``.

    A head dim that is no multiple of 8 (60, say) would make flash kernels copy queries, keys and values in every call.
    In float16 and bfloat16 on a GPU the weights are padded instead: in every forward while training, or once and for
    all by :meth:`pack_head_dim`. Parameters and state dict keep their unpadded shapes, packed or not.

    Example:
        >>> attention = SelfAttention(60, num_heads=5)  # heads of 12
        >>> x = torch.randn(2, 7, 60)
        >>> y = attention(x)
        >>> torch.allclose(attention.pack_head_dim()(x), y, atol=1e-6)
        True
    """

    def __init__(
        self, dim: int, num_heads: int, qkv_bias: bool = False, out_bias: bool = True, backend: str = "auto"
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise ValueError(f"SelfAttention: num_heads must divide dim = {dim}, got {num_heads}")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.backend = backend
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.out = nn.Linear(dim, dim, bias=out_bias)
        self.register_state_dict_post_hook(_unpad_state)
        self.register_load_state_dict_pre_hook(_pad_state)

    @property
    def is_packed(self) -> bool:
        return self.out.weight.shape[1] != self.num_heads * self.head_dim

    def pack_head_dim(self, multiple: int = 8) -> SelfAttention:
        """Pad the weights in place, once, for inference. An optimizer made before holds the old parameters."""
        if not self.is_packed:
            self._replace(lambda w: pad_qkv(w, self.num_heads, multiple),
                          lambda w: pad_out(w, self.num_heads, multiple))  # fmt: skip
        return self

    def unpack_head_dim(self) -> SelfAttention:
        """Undo :meth:`pack_head_dim`."""
        if self.is_packed:
            self._replace(lambda w: unpad_qkv(w, self.num_heads, self.head_dim),
                          lambda w: unpad_out(w, self.num_heads, self.head_dim))  # fmt: skip
        return self

    @torch.no_grad()
    def _replace(self, qkv: Any, out: Any) -> None:
        for name, parameter in list(self.qkv.named_parameters()):
            setattr(self.qkv, name, nn.Parameter(qkv(parameter), parameter.requires_grad))
        self.out.weight = nn.Parameter(out(self.out.weight), self.out.weight.requires_grad)
        self.qkv.out_features, self.out.in_features = self.qkv.weight.shape[0], self.out.weight.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        checks.check_rank("SelfAttention", "x", x, 3, "[B, L, dim]")
        would_copy = not self.is_packed and flash_would_copy(x, self.head_dim)
        if would_copy and checks.is_plain_linear(self.qkv) and checks.is_plain_linear(self.out):
            qkv_weight, qkv_bias, out_weight = self._padded()
            h = self._attended(F.linear(x, qkv_weight, qkv_bias))
            return F.linear(h, out_weight, self.out.bias)
        return apply_linear(self.out, self._attended(apply_linear(self.qkv, x)))

    def _attended(self, qkv: Tensor) -> Tensor:
        """``[B, L, 3 * heads * head_dim]``, padded or not, -> ``[B, L, heads * head_dim]``."""
        # [B, L, 3, heads, head_dim] -> three views [B, heads, L, head_dim]; this order lets the backward join the three
        # gradients in one copy.
        q, k, v = (part.transpose(1, 2) for part in qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(2))
        h = attention(q, k, v, self.backend, scale=self.head_dim**-0.5)
        return h.transpose(1, 2).flatten(-2)

    def _padded(self) -> tuple[Tensor, Tensor | None, Tensor]:
        bias = self.qkv.bias
        return (
            pad_qkv(self.qkv.weight, self.num_heads),
            None if bias is None else pad_qkv(bias, self.num_heads),
            pad_out(self.out.weight, self.num_heads),
        )

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, head_dim={self.head_dim}, backend={self.backend!r}"


def _unpad_state(module: SelfAttention, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    if not module.is_packed:
        return
    for name in ("qkv.weight", "qkv.bias"):
        if prefix + name in state:
            state[prefix + name] = unpad_qkv(state[prefix + name], module.num_heads, module.head_dim)
    state[prefix + "out.weight"] = unpad_out(state[prefix + "out.weight"], module.num_heads, module.head_dim)


def _pad_state(module: SelfAttention, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Pad an unpadded state that is about to be loaded into a packed module; leave other shapes to be refused."""
    if not module.is_packed:
        return
    width = module.out.weight.shape[1] // module.num_heads
    unpadded = module.num_heads * module.head_dim
    for name, pad, dimension in (
        ("qkv.weight", pad_qkv, 0),
        ("qkv.bias", pad_qkv, 0),
        ("out.weight", pad_out, -1),
    ):
        value = state.get(prefix + name)
        if value is not None and value.shape[dimension] == (3 * unpadded if dimension == 0 else unpadded):
            state[prefix + name] = pad(value, module.num_heads, width)
